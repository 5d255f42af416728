#!/usr/bin/env bash
# The tests and the benchmark on a machine with a card, in one command of under eight minutes:
#
#     OUT=results bash tests/gpu/run.sh
#
# Installs nothing and fetches nothing: takes Python (PYTHON=…), torch (2.11 and up) and the rest as they are found, and
# dlrun from this repository. Leaves in $OUT log.txt, all that was said; table.md, the card, the tests and the numbers;
# tests.xml. The exit code is that of the tests; 3 where a package is missing, which the log names.
# LIMIT=460: seconds for everything; the benchmark gets what the tests leave.
# DLRUN_GPU_TESTS_DEVICE=cpu tries all of it on a processor, the benchmark on a few tiny images.
set -u
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
OUT=${OUT:-$PWD/gpu-results}
LIMIT=${LIMIT:-460}
device=${DLRUN_GPU_TESTS_DEVICE:-cuda}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
log=$OUT/log.txt table=$OUT/table.md
: >"$log"
printf '# dlrun on a card\n\n' >"$table"
say() { echo "$@" | tee -a "$log"; }

python=${PYTHON:-}
for name in python3 python; do
    [ -n "$python" ] || { command -v "$name" >/dev/null && "$name" -c 'import torch' 2>/dev/null && python=$name; }
done
python=${python:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export TMPDIR=$scratch DLRUN_CACHE=$scratch/cache DLRUN_GPU_TESTS_DEVICE=$device
cd "$repo" || exit 3

missing=$("$python" - <<'PY' 2>>"$log"
from importlib.util import find_spec
names = "torch torchvision hydra omegaconf numpy rich pandas pytest scipy sklearn matplotlib optuna PIL"
print(" ".join(name for name in names.split() if find_spec(name) is None))
PY
) || missing="$python itself"
if [ -n "$missing" ]; then
    say "cannot run: not installed here: $missing"
    echo "Not run: $missing is missing." >>"$table"
    exit 3
fi

"$python" - <<'PY' 2>&1 | tee -a "$log" "$table"
import os, platform, subprocess, torch, torchvision
try:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip() or "no card is named"
except (OSError, subprocess.SubprocessError):
    said = "no nvidia-smi"
card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch sees"
print(f"- card: {card} (nvidia-smi: {said})")
print(f"- torch {torch.__version__}, torchvision {torchvision.__version__}, CUDA {torch.version.cuda}, "
      f"cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}, {os.cpu_count()} cores")
PY

begun=$SECONDS
timeout -s INT -k 20 $((LIMIT * 7 / 10)) "$python" -m pytest tests/gpu tests/data/test_batches.py tests/training/test_memory.py \
    -m gpu -v --tb=short -p no:cacheprovider -rsfE --durations=15 \
    --junitxml="$OUT/tests.xml" 2>&1 | tee -a "$log"
code=${PIPESTATUS[0]}
took=$((SECONDS - begun))

"$python" - "$OUT/tests.xml" "$code" "$took" <<'PY' 2>&1 | tee -a "$log" "$table"
import sys
from xml.etree import ElementTree
file, code, took = sys.argv[1:]
print(f"\n## Tests\n\nexit code {code} after {took} s" + (": the time was up" if code in ("124", "137") else ""))
try:
    cases = list(ElementTree.parse(file).iter("testcase"))
except (OSError, ElementTree.ParseError):
    sys.exit(print("no report of the tests was written; see log.txt"))
kinds = {kind: [c for c in cases if c.find(kind) is not None] for kind in ("failure", "error", "skipped")}
passed = len(cases) - sum(map(len, kinds.values()))
print(f"{passed} passed, " + ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items()) + "\n")
for kind in ("failure", "error"):
    for case in kinds[kind]:
        why = (case.find(kind).get("message") or "").splitlines()
        print(f"- {kind}: {case.get('classname')}::{case.get('name')}: {(why or [''])[0][:200]}")
PY

left=$((LIMIT - (SECONDS - begun) - 20))
words=(--seconds "$left" --out "$table")
[ "$device" = cpu ] && words+=(--device cpu --tiny)
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    say "benchmark: not measured, torch sees no CUDA device here" | tee -a "$table"
elif [ "$left" -lt 30 ]; then
    say "benchmark: not measured, $left s were left"
else
    # a part that has begun may end a little later than the benchmark was told
    timeout -k 10 $((left + 15)) "$python" tests/benchmarks/bench_gpu.py "${words[@]}" 2>&1 | tee -a "$log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || say "benchmark: a part failed or the time was up; see above" | tee -a "$table"
fi
say "done after $((SECONDS - begun)) s, exit code $code; $OUT/table.md"
exit "$code"
