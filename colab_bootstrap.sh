#!/usr/bin/env bash
# New-LLM: gets the project, installs what is missing, and trains in the background. Nothing is ever deleted or reset.
#
#   curl -s https://raw.githubusercontent.com/rato-tokyo/new-llm/main/colab_bootstrap.sh | bash -s -- RECIPE [flags]
#   bash colab_bootstrap.sh RECIPE [flags]        inside a clone
#
# Everything stands in functions and the last line calls them, so a download that was cut off runs nothing.

usage() {
  cat <<'USAGE'
Usage: colab_bootstrap.sh RECIPE [flags of `newllm train`] [--foreground]

  demo             New-LLM and TinyGPT2 on real dialogues, then their comparison (the main job)
  wikitext, ...    any recipe by name, or a YAML file (`newllm recipes` lists them)
  --foreground     wait for the end; the exit code is the job's
  --setup-only [EXTRAS]   only install (EXTRAS as in setup.py, for example demo,dev)
Inside a clone that clone is used, else ./new-llm (on Colab /content/new-llm) is cloned or fast-forwarded.
NEWLLM_DIR names another place, NEWLLM_REPO_URL another repository, NEWLLM_PYTHON another Python (3.10 or newer).
USAGE
}

hide() { sed -E 's#://[^/[:space:]]*@#://#g'; } # addresses without their user and token
tell() { printf '%s\n' "$*" | hide || :; } # whoever reads it may leave
die() { printf 'colab_bootstrap: %s\n' "$*" | hide >&2; exit 1; }

choose_python() { # sets python to the full path of an interpreter; -I: it imports nothing from the current folder
  set -- python3 python3.13 python3.12 python3.11 python3.10
  if [ -n "${NEWLLM_PYTHON:-}" ]; then set -- "$NEWLLM_PYTHON"; fi
  for python in "$@"; do
    if "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      python=$("$python" -I -c 'import sys; print(sys.executable)')
      return
    fi
  done
  die "no Python 3.10 or newer found (python3): install one, or name it with NEWLLM_PYTHON=/path/to/python3."
}

on_colab() {
  [ -n "${COLAB_RELEASE_TAG:-}" ] || { [ -d /content ] && "$python" -I -c 'import google.colab' 2>/dev/null; }
}

is_clone() { [ -f "$1/setup.py" ] && [ -d "$1/newllm_lib" ]; }

choose_clone() { # sets clone; fetches it where we are not inside one
  for folder in "$(dirname "${BASH_SOURCE[0]:-/}")" "$PWD" "$(git rev-parse --show-toplevel 2>/dev/null || :)"; do
    if [ -z "${NEWLLM_DIR:-}" ] && [ -n "$folder" ] && is_clone "$folder"; then
      clone=$(cd "$folder" && pwd)
      return
    fi
  done
  if on_colab; then clone=${NEWLLM_DIR:-/content/new-llm}; else clone=${NEWLLM_DIR:-new-llm}; fi
  bring_clone
  clone=$(cd "$clone" && pwd)
}

bring_clone() {
  local url=${NEWLLM_REPO_URL:-https://github.com/rato-tokyo/new-llm} partial="$clone.partial.$$"
  export GIT_TERMINAL_PROMPT=0 # a question nobody sees would wait for ever
  command -v git >/dev/null || die "git is missing: install it (Debian, Ubuntu: apt-get install git) and run this again."
  mkdir -p "$(dirname "$clone")"
  hold_lock "$(dirname "$clone")"
  if is_clone "$clone"; then
    git -C "$clone" pull --quiet --ff-only </dev/null >/dev/null 2>&1 ||
      tell "$clone could not be fast-forwarded (no network, or changes of your own): it is used as it is."
  elif [ -e "$clone" ] && [ -n "$(ls -A "$clone")" ]; then
    die "$clone exists and is no clone of New-LLM: move it away, or name another place with NEWLLM_DIR."
  else
    tell "Cloning $url into $clone"
    git clone --quiet "$url" "$partial" </dev/null 2> >(hide >&2) ||
      die "$url could not be cloned: look at the network, or set NEWLLM_REPO_URL."
    is_clone "$partial" || die "$url holds no New-LLM (it lies in $partial): look at NEWLLM_REPO_URL."
    if [ -e "$clone" ]; then rmdir "$clone"; fi # an empty folder; mv would put the clone inside it
    mv "$partial" "$clone"
  fi
  release_lock
}

hold_lock() { # one start at a time changes folder $1; the system drops the lock with the process
  exec 9<"$1"
  "$python" -I -c '
from fcntl import LOCK_EX, LOCK_NB, flock
try:
    flock(9, LOCK_EX | LOCK_NB)
except BlockingIOError:
    print("Another start is setting up here: waiting for it.", flush=True)
    flock(9, LOCK_EX)'
}

release_lock() { exec 9<&-; }

ensure_environment() { # ensure_environment EXTRAS: with all that is needed in it; python becomes its interpreter
  local extras=$1 base="$python" place=.venv began=$SECONDS stamp have=
  hold_lock .
  if on_colab; then place=.; else python=$clone/.venv/bin/python; fi
  stamp="$(cat setup.py constraints.txt | cksum) $clone"
  if [ "$(sed -n 1p "$place/.newllm-setup" 2>/dev/null)" = "$stamp" ]; then have=$(sed -n 2p "$place/.newllm-setup"); fi
  case ",$have," in *",$extras,"*)
    if "$python" -m newllm_lib.pip_report whole "$place" "${NEWLLM_PYTHON:+$base}" 2>/dev/null; then release_lock; return; fi
    tell "$clone/$place is not whole any more (its Python or a package is gone): mending it."
    have= ;;
  esac
  [ -w . ] || die "you may not write into $clone, which is not whole: take one of your own (NEWLLM_DIR)."
  if [ "$place" = .venv ] && ! "$python" -m pip --version >/dev/null 2>&1; then new_venv "$base"; fi
  "$python" -m newllm_lib.pip_report keep "$place" >"$place/.newllm-setup-constraints"
  tell "Installing what is missing (minutes the first time; output: $clone/$place/.newllm-setup-log)"
  put_in "$place" -c "$place/.newllm-setup-constraints" -e ".[$extras]" ||
    die "installing failed: $(grep -m 1 '^ERROR' "$place/.newllm-setup-log" || tail -n 1 "$place/.newllm-setup-log")." \
      "Mend that (network, free space) and run this again; the whole output is in $clone/$place/.newllm-setup-log"
  "$python" -m newllm_lib.pip_report report "$place" $((SECONDS - began)) | hide || :
  printf '%s\n' "$stamp" "${have:+$have,}$extras" >"$place/.newllm-setup"
  release_lock
}

put_in() { # put_in PLACE WORDS: pip install WORDS; by uv where it is found, but uv does not see what a .venv shares with its system
  local log=$1/.newllm-setup-log
  if command -v uv >/dev/null && ! grep -qs "site-packages = true" "$1/pyvenv.cfg"; then
    if uv pip install --python "$python" "${@:2}" </dev/null >"$log" 2>&1; then return; fi
    tell "uv could not install it ($(grep -m 1 -o 'error.*' "$log" || tail -n 1 "$log")): pip tries."
  fi
  "$python" -m pip install --disable-pip-version-check "${@:2}" </dev/null >"$log" 2>&1
}

new_venv() { # new_venv PYTHON: .venv in the clone, on top of that Python's torch if it has one
  local share=
  "$1" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$1 has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv), or set NEWLLM_PYTHON."
  if "$1" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then share=--system-site-packages; fi
  tell "Creating $clone/.venv${share:+ on top of the torch that is installed}"
  "$1" -m venv $share .venv || die "$clone/.venv could not be created: look at the free space and the permissions."
}

main() {
  set -euo pipefail
  local command="train" started_in=$PWD
  case "${1:-}" in
    "" | -h | --help) usage; return ;; --setup-only) ;;
    -*) printf 'colab_bootstrap: name a recipe before the flags, for example demo.\n' >&2; return 2 ;;
  esac
  choose_python
  choose_clone
  cd "$clone"
  if [ "$1" = --setup-only ]; then ensure_environment "${2:-demo}"; return; fi
  ensure_environment demo
  if [ "$1" = demo ]; then command=demo; shift; fi
  export NEWLLM_STARTED_IN=$started_in # so that the commands shown to the user begin with the right `cd`
  export PYTHONSAFEPATH=1 # nothing is imported from the current folder first (Python 3.11 and newer)
  exec "$python" -m newllm_lib "$command" --background "$@" </dev/null # --foreground, if given, comes later and wins
}

{ main "$@"; exit; }
