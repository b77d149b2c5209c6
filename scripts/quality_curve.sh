#!/usr/bin/env bash
# Prints what sizes cost a model, one line of a Markdown table each: bits, signal to noise, divergence, perplexity.
#
#   scripts/quality_curve.sh MODEL_DIR TEXT BITS... [--calibrate TEXT]
#
# TEXT is what both models read, in $WINDOWS windows of $WINDOW tokens (8 of 512). `own` stands for a text that the model tells
# itself at temperature 1, of seeds from 1 on; as --calibrate for one of other seeds. Needs `cargo build --release`.
set -euo pipefail
codecllm=${CODECLLM:-target/release/codecllm}
window=${WINDOW:-512} windows=${WINDOWS:-8}
calibrate_windows=${CALIBRATE_WINDOWS:-16}

[ $# -ge 3 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 text=$2
shift 2
sizes=() calibration=
while [ $# -gt 0 ]; do
    case $1 in
        --calibrate) calibration=$2; shift 2 ;;
        *) sizes+=("$1"); shift ;;
    esac
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# tell FILE FIRST_SEED: twelve stories of up to 230 tokens, by one thread (they wait for each other too long in a model this small)
tell() {
    for seed in $(seq "$2" $(($2 + 11))); do
        OMP_NUM_THREADS=1 "$codecllm" generate "$model" --raw --prompt "Once upon a time" --temperature 1 --seed "$seed" \
            --max-new-tokens 230 --dtype fp32 2>/dev/null
        echo
    done >"$1"
}
[ "$text" != own ] || { text=$work/own.txt; tell "$text" 1; }
[ "$calibration" != own ] || { calibration=$work/calibration.txt; tell "$calibration" 101; }

echo "| bits a weight (entropy of the grid) | SNR, dB | mean divergence, nats | perplexity | same top token |"
echo "|---|---|---|---|---|"
for bits in "${sizes[@]}"; do
    rm -rf "$work/out"
    "$codecllm" compress "$model" -o "$work/out" --bits "$bits" --json \
        ${calibration:+--calibrate "$calibration" --calibrate-windows "$calibrate_windows"} >"$work/compress.json" 2>/dev/null
    "$codecllm" parity "$model" "$work/out" --text "$text" --window "$window" --max-windows "$windows" --json \
        >"$work/parity.json" 2>/dev/null
    python3 - "$work/compress.json" "$work/parity.json" <<'PYTHON'
import json, sys

compress, parity = (json.load(open(file)) for file in sys.argv[1:])
before, after = parity["perplexity_reference"], parity["perplexity_compressed"]
print(
    f"| {compress['bits_per_weight']:.3f} ({compress['grid_entropy_bits']:.3f}) | {compress['snr_db']:.1f} "
    f"| {parity['kl_mean']:.5f} | {after:.3f} ({100 * (after / before - 1):+.2f} % of {before:.3f}) "
    f"| {100 * parity['top1_agreement']:.1f} % |",
    flush=True,
)
PYTHON
done
