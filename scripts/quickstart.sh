#!/usr/bin/env bash
# The whole system on a laptop: use the shipped models, then train a tokenizer and a generator from scratch.
#
#   bash scripts/quickstart.sh            results in runs/quickstart
#   OUT=/tmp/try bash scripts/quickstart.sh
#
# What is done already is skipped, and an interrupted training goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment requirements.txt
OUT="${OUT:-runs/quickstart}"
OUT="${OUT/#\~\//$HOME/}" # a shell that was given "~/x" in quotes has not replaced it
mkdir -p "$OUT"

echo "== 1. the shipped models: held-out emoji through the tokenizer, and a row of new ones per class"
"$PYTHON" scripts/reconstruct.py tokenizer=assets/models/titok_openmoji max_images=64 png=false output="$OUT/shipped"
"$PYTHON" sample_imagenet.py generator=assets/models/rar_openmoji num_samples=80 png=false npz=false output="$OUT/shipped"

echo "== 2. train a tokenizer from scratch"
"$PYTHON" train_titok.py config=configs/titok/openmoji.yaml experiment.output_dir="$OUT/titok" \
    training.max_steps=1500 training.evaluate_every=500 training.preview_every=500 training.save_every=250

echo "== 3. turn the images into tokens"
for split in train validation; do
    # Without skin-tone variants, or more than half of what the generator sees would be people.
    "$PYTHON" scripts/pretokenize.py tokenizer="$OUT/titok" num_workers=0 output="$OUT/$split.tokens" \
        data.name=openmoji data.image_size=48 data.skin_tones=false data.split="$split"
done

echo "== 4. train a generator on the tokens"
"$PYTHON" train_rar.py config=configs/rar/openmoji.yaml experiment.output_dir="$OUT/rar" \
    training.max_steps=1200 training.evaluate_every=400 training.preview_every=400 training.save_every=200 \
    data.tokens="$OUT/train.tokens" data.validation="$OUT/validation.tokens" data.tokenizer="$OUT/titok"

echo "== 5. what came out"
"$PYTHON" sample_imagenet.py generator="$OUT/rar" tokenizer="$OUT/titok" num_samples=80 png=false npz=false output="$OUT/samples"
"$PYTHON" scripts/summarize.py tokenizer="$OUT/titok" generator="$OUT/rar" samples="$OUT/samples" output="$OUT"
