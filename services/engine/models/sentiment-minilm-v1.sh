#!/usr/bin/env bash
# Trains sentiment-minilm-v1 anew: is the mood of an English text positive or negative?
#
# The data: 23,700 short texts (tweets, sentences of film and product reviews and of newspaper editorials), each rated by
# 20 people from -4 to 4. C. J. Hutto and E. Gilbert published them with VADER (ICWSM 2014) under the MIT licence. A
# positive mean is `positive`, a negative one `negative`; texts that came to 0 are left out.
#
# Usage: sentiment-minilm-v1.sh [FOLDER]; TAMIS names the program [tamis], PIP pip [python3 -m pip].
# FOLDER [sentiment-minilm-v1] gets the data, the report, the head and its manifest. The bytes of the head depend on the
# processor by which the texts are embedded; its figures do not, beyond their last digit.
set -euo pipefail

folder=${1:-sentiment-minilm-v1}
mkdir -p "$folder"
cd "$folder"

echo 'vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9' > packages.txt
${PIP:-python3 -m pip} download --quiet --no-deps --no-binary :all: --require-hashes --requirement packages.txt
tar --extract --gzip --file vaderSentiment-3.3.2.tar.gz --strip-components 1
tar --extract --gzip --file additional_resources/hutto_ICWSM_2014.tar.gz --directory additional_resources

python3 - <<'PYTHON'
import csv
import html

KINDS = {"tweets": "tweets", "movieReviewSnippets": "films", "amazonReviewSnippets": "products", "nytEditorialSnippets": "news"}

with open("sentiment.csv", "w", encoding="utf-8", newline="") as table:
    rows = csv.writer(table)
    rows.writerow(["text", "label", "kind"])
    for name, kind in KINDS.items():
        path = f"additional_resources/hutto_ICWSM_2014/{name}_GroundTruth.txt"
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                _, rating, text = line.rstrip("\r\n").split("\t", 2)
                if float(rating) != 0:
                    rows.writerow([html.unescape(text), "positive" if float(rating) > 0 else "negative", kind])
PYTHON

${TAMIS:-tamis} train-head sentiment.csv --data-dir "$PWD/data" --name sentiment --group-column kind \
    --decide best --licence MIT --force | tee report.txt
cp data/models/sentiment/head.safetensors sentiment-minilm-v1.safetensors
cp data/manifests/sentiment.toml .
