#!/bin/sh
# Sums up a file's bytes. A function on files: started for each call, reads $INPUT_FILE, writes $OUTPUT_FILE.
# Its exit status says whether it succeeded.
set -eu
cksum < "$INPUT_FILE" | awk '{ printf "{\"crc\": %s, \"bytes\": %s}", $1, $2 }' > "$OUTPUT_FILE"
