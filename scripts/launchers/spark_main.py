"""What spark-submit is given: runs a module of this repository in the session that spark-submit configured.

    spark-submit --master spark://host:7077 scripts/launchers/spark_main.py spark_jobs.ingest --dataset ...

The session is opened here, before the module asks for one, so that master and sizes are spark-submit's.
"""

import runpy
import sys

from pyspark.sql import SparkSession

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.stderr.write("usage: spark-submit [...] scripts/launchers/spark_main.py <module> [arguments]\n")
        sys.exit(2)
    module, sys.argv = sys.argv[1], sys.argv[1:]
    spark = SparkSession.builder.appName(module).getOrCreate()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        spark.stop()
