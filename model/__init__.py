"""MTGR: data, model, training, evaluation, registry and serving."""

import logging
import warnings


def _says_something(record: logging.LogRecord) -> bool:
    # fbgemm 1.6.0 warns, once a library, that its own table of torch versions does not list it; torchrec
    # calls a torch function whose name torch would rather have longer.
    text = str(record.msg)
    return "_fbgemm_torch_compat_table" not in text and "is_fx_tracing" not in text


logging.getLogger().addFilter(_says_something)
logging.getLogger("torch.fx._symbolic_trace").addFilter(_says_something)
logging.getLogger("torchrec").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="torchrec")
warnings.filterwarnings("ignore", message=".*ShardedTensor.*")
