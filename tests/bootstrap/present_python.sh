#!/bin/bash
# Stands in for a Python that has every package already: pip finds nothing to do, an environment is this same program.
#   REAL_PYTHON: the interpreter that has them. PIP_CALLS: a file for the record.
case "$1 $2" in
"-I -c") case "$*" in *"print(sys.executable)"*) echo "$0" ;; *) exec "$REAL_PYTHON" "$@" ;; esac ;;
"-m venv") mkdir -p "${*: -1}/bin" && cp "$0" "${*: -1}/bin/python" ;;
"-m pip") [ "$3" = --version ] || echo "$PWD $*" >>"$PIP_CALLS" ;;
"-m newllm_lib") PYTHONPATH=$PWD exec "$REAL_PYTHON" "$@" ;;
*) exec "$REAL_PYTHON" "$@" ;;
esac
