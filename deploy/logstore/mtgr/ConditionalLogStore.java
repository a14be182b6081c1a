package mtgr;

import io.delta.storage.HadoopFileSystemLogStore;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Iterator;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSDataOutputStreamBuilder;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.s3a.RemoteFileChangedException;

/**
 * Delta's log on S3 by conditional puts: of several drivers that write the same version one does, as delta-rs has it.
 *
 * <p>Delta 4.4 brings a store for one driver (it looks, then writes) and one that needs DynamoDB.
 */
public final class ConditionalLogStore extends HadoopFileSystemLogStore {
  private static final String CONDITIONAL = "fs.option.create.conditional.overwrite";

  public ConditionalLogStore(Configuration conf) {
    super(conf);
  }

  @Override
  public void write(Path path, Iterator<String> actions, Boolean overwrite, Configuration conf) throws IOException {
    StringBuilder lines = new StringBuilder();
    while (actions.hasNext()) {
      lines.append(actions.next()).append('\n');
    }
    byte[] content = lines.toString().getBytes(StandardCharsets.UTF_8);
    FileSystem fs = path.getFileSystem(conf);
    if (overwrite) {
      try (FSDataOutputStream out = fs.create(path, true)) {
        out.write(content);
      }
      return;
    }
    // must: a file system that knows no conditional puts refuses, instead of writing over another's commit.
    FSDataOutputStreamBuilder<?, ?> file = fs.createFile(path);
    file.overwrite(false).must(CONDITIONAL, true);
    try (FSDataOutputStream out = file.build()) {
      out.write(content);
    } catch (RemoteFileChangedException error) { // 412: it is there
      // S3A sends a put again whose answer was lost: then the file that is there is this one.
      if (!holds(fs, path, content)) {
        throw new java.nio.file.FileAlreadyExistsException(path.toString());
      }
    }
  }

  private static boolean holds(FileSystem fs, Path path, byte[] content) throws IOException {
    try (FSDataInputStream in = fs.open(path)) {
      return Arrays.equals(in.readAllBytes(), content);
    }
  }

  @Override
  public Boolean isPartialWriteVisible(Path path, Configuration conf) {
    return false;
  }
}
