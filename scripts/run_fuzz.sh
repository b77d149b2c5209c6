#!/usr/bin/env bash
# Runs the fuzz targets of `make fuzz-pack` where there is no cargo: JOBS processes of each target at once, for SECONDS. What they
# found and the last lines of their logs are in OUTDIR/fuzz_results.tar.xz, the corpora as they grew in OUTDIR/fuzz_corpora.tar.xz. Exit
# code: 0 for no finding, 1 for a finding, 2 for a target that did not run.
set -u
if [ $# != 3 ]; then
	echo "usage: [T=TORCH_FOLDER] [TARGETS='decode_tile ...'] $0 SECONDS JOBS OUTDIR" >&2
	exit 2
fi
seconds=$1 jobs=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$3" && out=$(cd "$3" && pwd) || exit 2
targets=${TARGETS:-$(ls "$here/bin")}
T=${T:-$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')} || exit 2
export LD_LIBRARY_PATH="$T/lib:$T/../nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# The gap of the shadow memory is where CUDA's libraries want to map. One thread a process: the processes fill the cores.
export ASAN_OPTIONS="protect_shadow_gap=0:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
work=$out/work
mkdir -p "$work"/{logs,found,corpus,grown} && cp -r "$here/corpus/." "$work/corpus" || exit 2

run() {
	local target=$1 leaks=1
	shift
	# libtorch leaks a zip reader for each file that it refuses. Both: what a run leaks, and what the process has leaked at its end.
	[ "$target" != torchscript_patch ] || leaks=0
	ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=$leaks \
		"$here/bin/$target" -timeout=25 -rss_limit_mb=6144 -print_final_stats=1 -detect_leaks=$leaks "$@"
}

# One process of a target; after a finding another one, for the rest of the time.
job() {
	local target=$1 number=$2 left round=0 status=0
	local tmp=$work/tmp/$target-$number
	mkdir -p "$tmp"
	while left=$((end - $(date +%s))) && [ $left -gt 0 ] && [ $round -lt 20 ]; do
		TMPDIR=$tmp run "$target" "$work/corpus/$target" -max_total_time=$left -seed=$((1000 * number + round + 1)) \
			-artifact_prefix="$work/found/$target-$number-$round-" \
			>"$work/logs/$target-$number-$round.log" 2>&1 || status=$?
		[ $status != 0 ] || break
		round=$((round + 1))
		rm -rf "${tmp:?}"/*
	done
	rm -rf "$tmp"
}

end=$(($(date +%s) + seconds))
for target in $targets; do
	mkdir -p "$work/corpus/$target"
	for number in $(seq "$jobs"); do job "$target" "$number" & done
done
wait

# What the processes of a target did, all together.
summarize() {
	local target=$1 runs=0 own coverage log
	for log in "$work/logs/$target"-[0-9]*.log; do
		own=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
		if [ -z "$own" ]; then
			echo "BROKEN: $target did not run to an end, $(basename "$log") ends with:"
			tail -n 5 "$log"
		fi
		runs=$((runs + ${own:-0}))
	done
	coverage=$(cat "$work/logs/$target"-[0-9]*.log | sed -n 's/.* cov: \([0-9]*\) .*/\1/p' | sort -n | tail -n 1)
	echo "$target: $runs runs in $jobs x $seconds s, coverage ${coverage:-0}, found $(find "$work/found" -name "$target-*" | wc -l)"
}

for target in $targets; do summarize "$target"; done | tee "$work/summary.txt"
for log in "$work"/logs/*.log; do tail -n 80 "$log" >"$log.end" && mv "$log.end" "$log"; done
code=0
! grep -q '^BROKEN' "$work/summary.txt" || code=2
[ -z "$(ls "$work/found")" ] || code=1
# First what was found: making the corpora small may take longer than the caller waits.
tar -C "$work" -cJf "$out/fuzz_results.tar.xz" summary.txt logs found
for target in $targets; do
	mkdir -p "$work/grown/$target"
	TMPDIR=$work/tmp run "$target" -merge=1 "$work/grown/$target" "$work/corpus/$target" >"$work/logs/$target-merge.log" 2>&1 &
done
wait
tar -C "$work" -cJf "$out/fuzz_corpora.tar.xz" grown && rm -rf "$work"
exit $code
