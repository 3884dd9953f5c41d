#!/bin/sh
# usage: gpu-check.sh [MODEL]     Runs on a GPU what no machine without one can check, and compares it with the CPU.
#
# The tests with --device cuda, then MODEL [models/SmolLM2-135M-Instruct] quantized by both methods on the GPU, with the activations
# there and on the host, and on the CPU, and measured on both. Prints one table; exit code 0 if the GPU's results are as good
# as the CPU's, 1 if not, 2 without a GPU.
# NIBBLE=PROGRAM takes another program than target/release/nibble; without cargo the tests are skipped, and that is said.
set -eu
cd "$(dirname "$0")/.."
nibble=${NIBBLE:-target/release/nibble}
model=${1:-models/SmolLM2-135M-Instruct}
sizes="--num-samples 32 --seq-len 512 --group-size 64"
# How much worse a result from the GPU may be, as a part of the CPU's: calibration runs in bfloat16 there.
tolerance=0.1

fail() { echo "gpu-check: $2" >&2; exit "$1"; }
[ -x "$nibble" ] || fail 2 "$nibble is not there; run \`make CUDA=1\`"
"$nibble" devices
"$nibble" devices --json | grep -q '"auto":{"device":"cuda:0"' ||
    fail 2 "no GPU that can be used, for the reason above; nothing was checked"
[ -f "$model/model.safetensors" ] || fail 2 "$model is not there; run \`make model\`"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

tests=passed
if command -v cargo >/dev/null; then
    NIBBLE_TEST_DEVICE=cuda cargo test --release --locked --test it -- quantize:: smollm2:: experts:: resume:: devices:: ||
        tests=FAILED
else
    tests="SKIPPED: no cargo"
fi

# A number of the JSON object on stdin.
number() { printf %.4e "$(sed -n "s/.*\"$1\":\([-0-9.e]*\).*/\1/p")"; }
# What follows a label in a report.
line() { sed -n "s/^$1  *//p" "$2/quantization_report.log"; }
# One row of the table: eight columns.
row() { printf '%-6s %-6s %9s %12s %12s %12s %12s  %s\n' "$@" >>"$work/table"; }

row method place seconds error "KL on GPU" "KL on CPU" "peak VRAM" "planned VRAM beyond libtorch's own"
# What the plan says of VRAM, with these options.
# shellcheck disable=SC2086
planned() { "$nibble" --quiet $sizes --dry-run --output "$work/plan" "$@" "$model" | sed -n 's/^VRAM *\(about \)\{0,1\}//p'; }

for method in awq gptq; do
    # On the GPU with the activations there, with a little less memory than that takes, and on the CPU.
    for place in cuda host cpu; do
        device=$place
        options="--$method"
        if [ $place = host ]; then
            device=cuda
            # "12.3 MiB beyond libtorch's own: activations ..."
            options="$options --vram $(planned $options | awk '{ print $1 * 0.9 $2 }')"
        fi
        options="$options --device $device"
        out=$work/$method-$place
        # The sizes and options are several words.
        # shellcheck disable=SC2086
        "$nibble" --quiet $sizes $options --vram-interval 5 --output "$out" "$model"
        # shellcheck disable=SC2086
        planned=$(planned $options)
        case $place/$planned in
            cuda/*activations* | cpu/*) ;;
            host/*activations* | cuda/*) fail 1 "--$method, $place: the plan is not the one to check: $planned" ;;
        esac
        for measured in cuda cpu; do
            "$nibble" eval "$out" --reference "$model" --windows 8 --json --quiet --device $measured --dtype float32 \
                >"$out/$measured.json"
        done
        row $method $place "$(awk '/^whole run/ { print $(NF - 1) }' "$out/quantization_report.log")" \
            "$(line 'mean relative output error' "$out")" \
            "$(number kl_divergence <"$out/cuda.json")" "$(number kl_divergence <"$out/cpu.json")" \
            "$(line 'peak VRAM' "$out" | sed 's/ at .*//; s/no GPU was used/-/; s/,.*//')" "$planned"
    done
done

echo
cat "$work/table"
echo "tests on the GPU: $tests"
# Errors and divergences of a method on the GPU beside those of the same method on the CPU.
verdict=$(awk -v most=$tolerance '
    function far(a, b) { return a > b * (1 + most) }
    function apart(a, b) { return a > b * 1.02 || b > a * 1.02 }
    apart($5, $6) && NR > 1 { print $1 ": KL " $5 " measured on the GPU and " $6 " on the CPU, of one model in float32" }
    $2 != "cpu" { error[$1, $2] = $4; gpu[$1, $2] = $5; cpu[$1, $2] = $6 }
    $2 == "cpu" {
        for (place = 1; place <= 2; place++) {
            at = place == 1 ? "cuda" : "host"
            if (far(error[$1, at], $4)) print $1 ": error " error[$1, at] " on the GPU (" at "), " $4 " on the CPU"
            if (far(gpu[$1, at], $5)) print $1 ": KL " gpu[$1, at] " on the GPU (" at "), " $5 " on the CPU, both measured on the GPU"
            if (far(cpu[$1, at], $6)) print $1 ": KL " cpu[$1, at] " on the GPU (" at "), " $6 " on the CPU, both measured on the CPU"
        }
    }' "$work/table")
[ -z "$verdict" ] || fail 1 "the GPU does not agree with the CPU:
$verdict"
[ "$tests" != FAILED ] || fail 1 "tests failed on the GPU"
echo "gpu-check: the results of the GPU are as good as those of the CPU"
