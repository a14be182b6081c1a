#!/usr/bin/env bash
# What a deployment needs beside the lock: `deploy/fetch.sh jars FOLDER` brings Spark's jars (Maven, a JDK), and for
# tests `deploy/fetch.sh all FOLDER` the Python packages and the object store, too (uv, Go). A second call fetches
# nothing. Used by the Dockerfile and by tests/end_to_end/test_deployment.py.
set -euo pipefail
repository="$(cd "$(dirname "$0")/.." && pwd)"
what="$1" folder="$(mkdir -p "$2" && cd "$2" && pwd)"
python="${PYTHON:-$repository/.venv/bin/python}"
OBJECT_STORE=github.com/versity/versitygw/cmd/versitygw@v1.8.0

jars() {
  local jars="$folder/jars" spark classes
  [[ -e "$jars/mtgr-logstore.jar" ]] && return
  mkdir -p "$jars"
  mvn -q -B -f "$repository/deploy/pom.xml" dependency:copy-dependencies -DoutputDirectory="$jars" \
    -DincludeGroupIds=io.delta,io.unitycatalog,org.locationtech.jts,org.apache.hadoop,software.amazon.awssdk,software.amazon.s3.analyticsaccelerator \
    -DexcludeArtifactIds=hadoop-client-api,hadoop-client-runtime
  spark="$("$python" -c 'import pyspark; print(pyspark.__path__[0])')" classes="$(mktemp -d)"
  javac --release 17 -d "$classes" -cp "$spark/jars/*:$jars/*" "$repository"/deploy/logstore/mtgr/*.java
  jar cf "$jars/mtgr-logstore.jar" -C "$classes" mtgr
  rm -r "$classes"
}

python_packages() {
  [[ -e "$folder/python" ]] && return
  # Those that the lock of the project does not have: the environment itself stays as it is.
  grep -vxFf "$repository/requirements.txt" "$repository/deploy/requirements.txt" > "$folder/extra.txt"
  "$python" -m uv pip install -q --no-deps --target "$folder/python.new" -r "$folder/extra.txt"
  mv "$folder/python.new" "$folder/python"
}

programs() {
  for program in redis-server /usr/lib/postgresql/*/bin/initdb; do
    command -v "$program" >/dev/null || { echo "fetch.sh: no $program: apt-get install redis-server postgresql" >&2; exit 1; }
  done
  [[ -e "$folder/bin/versitygw" ]] && return
  GOBIN="$folder/bin" go install -p 1 "$OBJECT_STORE"
}

case "$what" in
  jars) jars ;;
  all) jars; python_packages; programs ;;
  *) echo "usage: deploy/fetch.sh jars|all FOLDER" >&2; exit 2 ;;
esac
