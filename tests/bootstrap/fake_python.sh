#!/bin/bash
# Stands in for Python where the real thing would install gigabytes: makes pretended environments, records what pip and newllm
# are asked, and leaves every other program text to the real Python.
#
#   REAL_PYTHON, CALLS (a file for the record), and what may go wrong: NO_VENV, TORCH (it is installed), PIP_FAILS, JOB_CODE
isolated=
if [ "$1" = -I ]; then isolated=-I && shift; fi
case "$1 $2" in
"-c "*"print(sys.executable)"*) echo "$0" ;;
"-c import ensurepip"*) [ -z "$NO_VENV" ] ;;
"-c "*'find_spec("torch")'*) [ -n "$TORCH" ] ;;
"-c "*) exec "$REAL_PYTHON" $isolated "$@" ;;
"- "*) exec "$REAL_PYTHON" "$@" ;;
"-m venv")
  echo "$*" >>"$CALLS"
  mkdir -p "${*: -1}/bin"
  cp "$0" "${*: -1}/bin/python"
  case "$*" in *--system-site-packages*) echo "include-system-site-packages = true" >"${*: -1}/pyvenv.cfg" ;; esac
  ;;
"-m pip")
  [ "$3" = --version ] && exit
  echo "$0 $*" >>"$CALLS"
  if [ -n "$PIP_FAILS" ]; then
    printf 'Looking in indexes\nERROR: No matching distribution found for torch>=2.11\nmore\n'
    exit 1
  fi
  sleep "${PIP_SECONDS:-0}"
  echo "Successfully installed ${PIP_ADDS:-chitchat-dataset-0.9.0} newllm-0.1.0"
  ;;
"-m newllm_lib.pip_report") exec "$REAL_PYTHON" "$@" ;;
"-m newllm_lib")
  echo "$PWD $0 $*" >>"$CALLS"
  echo "newllm says: ${*:3} (started in $NEWLLM_STARTED_IN)"
  [ -z "$(cat)" ] || echo "standard input was not empty"
  exit "${JOB_CODE:-0}"
  ;;
*) echo "fake python was asked: $*" >&2 && exit 99 ;;
esac
