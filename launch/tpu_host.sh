#!/usr/bin/env bash
# The part of launch/tpu_pod.py that runs on each host of a TPU slice: install, start COMMAND, status, stop.
set -euo pipefail
cd "$(dirname "$0")/.."
this=launch/tpu_host.sh

case ${1-} in
  install)
    # The Python of the host is too old; uv installs another.
    python3 -m pip install --user uv
    python3 -m uv venv --allow-existing --python 3.12 .venv
    python3 -m uv pip install --python .venv -e '.[tpu]'
    ;;
  start)
    rm -f run.status
    # In a session of its own, so that the command outlives the connection.
    PATH="$PWD/.venv/bin:$PATH" setsid --fork bash "$this" run "${@:2}" < /dev/null >> run.log 2>&1
    ;;
  run)
    echo $$ > run.pid
    status=0
    "${@:2}" || status=$?
    echo "$status" > run.status
    ;;
  status) # one word: the exit status, running, or idle if no command was started since the host booted
    if [ -e run.status ]; then
      cat run.status
    elif [ -e run.pid ] && kill -0 "$(cat run.pid)" 2> /dev/null; then
      echo running
    else
      echo idle
    fi
    ;;
  stop)
    pkill -TERM -P "$(cat run.pid)"
    ;;
  *)
    echo "error: ${1-nothing} is not one of install, start, status, stop" >&2
    exit 2
    ;;
esac
