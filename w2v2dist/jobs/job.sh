# The part of a batch script that a failure meets. This `srun` stands before Slurm's: when a process or a node fails it
# runs the same again on the nodes that answer, in the same allocation; with fewer than min_nodes it requeues the job.
# Nodes that failed max_node_failures times are left out. Set before: run (the run's folder), min_nodes, max_failures,
# max_node_failures, signal_delay_s, no_kill (true or false).
set +eu # a failure is what the following is about
# A task of an array may have the number of the whole array, which commands take for all of its tasks
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
export job=${job:-$SLURM_JOB_ID}

count() { grep -c . <<<"$1"; }
without() { grep -vxFe "$2" <<<"$1"; } # the lines of $1 that are not in $2
shown() { scontrol show job --oneliner "$job" | grep -o " $1=[^ ]*" | cut -d= -f2; }
allocated() {
  local now
  now=$(squeue --noheader --jobs="$job" --format=%N) # empty where the controller does not answer
  scontrol show hostnames "${now:-$SLURM_JOB_NODELIST}"
}

# What a node runs to answer with its name ($0): not where a GPU is missing that the job was given
answer='[ -z "$SLURM_GPUS_ON_NODE" ] || ! command -v nvidia-smi >/dev/null ||
  [ "$(nvidia-smi -L | grep -c ^GPU)" -ge "$SLURM_GPUS_ON_NODE" ] && echo "$0"'

answering() { # the allocated nodes that answer within 30 s, in Slurm's order
  local nodes on=(timeout 30 srun --overlap --nodes=1 --ntasks=1 --mem=0)
  nodes=$(allocated)
  grep -xFe "$(for node in $nodes; do "${on[@]}" --nodelist="$node" bash -c "$answer" "$node" 2>/dev/null & done; wait)" <<<"$nodes"
}

event() { # NAME FIELDS, as JSON
  printf '{"event": "%s", "time": %s, "job": "%s", %s}\n' "$1" "$(date +%s.%3N)" "$job" "$2" >>"$run/events.jsonl"
}

bad_nodes() { # none where the partition would have fewer than min_nodes left
  local nodes up
  nodes=$(sed -n "s/.*\"failed\".*\"job\": \"$job\".*\"nodes\": \"\(.*\)\".*/\1/p" "$run/events.jsonl")
  nodes=$(tr , '\n' <<<"$nodes" | sort | uniq -c | awk -v max="$max_node_failures" '$1 >= max && $2 != "unknown" {print $2}')
  up=$(sinfo --noheader --Node --responding --partition="$SLURM_JOB_PARTITION" --states=idle,alloc,mix,comp --format=%N | sort -u)
  [ "$(count "$(without "$up" "$nodes")")" -lt "$min_nodes" ] || echo "$nodes"
}

exclude() { # from the next allocation: Slurm takes it as soon as the job is requeued, and not before
  local nodes old
  nodes=$(bad_nodes | paste -sd,)
  [ -n "$nodes" ] || return
  old=$(shown ExcNodeList)
  echo "nodes that failed $max_node_failures times are excluded: $nodes"
  scontrol update JobId="$job" ExcNodeList="$([ "$old" = "(null)" ] || echo "$old,")$nodes"
}

watch_first_node() { # with --no-kill, Slurm lets a job go on whose first node died, and this script with it
  local second began=$SECONDS said
  second=$(sed -n 2p <<<"$nodes")
  [ -z "$watch" ] || kill "$watch" 2>/dev/null
  [ "$no_kill" = true ] && [ -n "$second" ] || return 0
  said=$(mktemp)
  (exec srun --overlap --nodes=1 --ntasks=1 --mem=0 --nodelist="$second" bash -c 'echo watching; while sleep 20; do
      nodes=$(scontrol show hostnames "$(squeue --noheader --jobs="$job" --format=%N)")
      [ -z "$nodes" ] || grep -qx "$0" <<<"$nodes" || scontrol requeue "$job" >/dev/null 2>&1
    done' "$SLURMD_NODENAME" >"$said" 2>/dev/null) &
  watch=$!
  # Nothing starts unwatched: a node that died before its watcher ran would leave the allocation to nobody
  while [ ! -s "$said" ] && kill -0 "$watch" 2>/dev/null && [ $((SECONDS - began)) -lt 60 ]; do sleep 0.1; done
  [ -s "$said" ] || echo "no step started on $second that would requeue the job if this node, $SLURMD_NODENAME, died"
  rm -f "$said"
}

seconds_left() { # until the time limit
  local end
  end=$(date --date="$(shown EndTime)" +%s 2>/dev/null) || end=99999999999 # none
  echo $((end - $(date +%s)))
}

srun() {
  local attempt=0 watch="" rc=1 nodes alive before told said state failed checkpoint failures log
  unset SLURM_NTASKS SLURM_NPROCS # of the whole allocation
  mkdir -p "$run/logs" && touch "$run/events.jsonl" && rm -f "$run/logs/$job.error"
  log=$(shown StdErr) # where Slurm's srun says which task failed
  trap : TERM # Slurm ends the job: time enough, until KILL, to say why
  nodes=$(without "$(allocated)" "$(bad_nodes)")
  [ "$(count "$nodes")" -ge "$min_nodes" ] || nodes=$(allocated)
  while [ "$(count "$nodes")" -ge "$min_nodes" ]; do
    # The address of the first node, whose name need not resolve, and another port each time: a stale listener would
    # split the ranks in two. Below the ephemeral ports.
    MASTER_ADDR=$(scontrol show node --oneliner "$(head -n 1 <<<"$nodes")" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
    MASTER_PORT=$((15000 + (SLURM_JOB_ID * 31 + ${SLURM_RESTART_COUNT:-0} * 97 + attempt++ * 7) % 10000))
    export MASTER_ADDR MASTER_PORT
    watch_first_node
    before=$(stat --format=%s "$log") told=$(stat --format=%s "$run/events.jsonl")
    command srun --nodes="$(count "$nodes")" --nodelist="$(paste -sd, <<<"$nodes")" "$@"
    rc=$?
    if [ "$rc" -eq 0 ] || [ "$rc" -eq 2 ] || [ -e "$run/logs/$job.error" ]; then return "$rc"; fi # 2: a mistake
    said=$(tail --bytes="+$((before + 1))" "$log" | grep -a '^srun: error: ')
    for _ in {1..30}; do # while the controller does not answer
      state=$(shown JobState)
      [ -z "$state" ] || break
      sleep 10
    done
    if [ "$state" != RUNNING ]; then # Slurm ends the job; a node failed or it is cancelled, preempted or requeued
      failed=$(sed -n 's/^srun: error: Node failure on //p' <<<"$said" | head -n 1)
      [ -n "$failed" ] || return "$rc"
      failed=$(scontrol show hostnames "$failed")
    else
      # Saved after a signal, even where a process ended badly after that
      [ "$rc" -ne 75 ] && ! tail --bytes="+$((told + 1))" "$run/events.jsonl" | grep -q '"event": "preempted"' || break
      alive=$(answering)
      failed=$(without "$nodes" "$alive")
      # Else the node of the first task that failed: it takes the others with it
      [ -n "$failed" ] || failed=$(sed -n 's/^srun: error: \([^ :]*\): tasks\{0,1\} .*/\1/p' <<<"$said" | head -n 1)
    fi
    checkpoint=$(ls "$run/checkpoints" 2>/dev/null | grep '^step_[0-9]*$' | tail -n 1)
    checkpoint="\"checkpoint\": \"${checkpoint:-none}\""
    failed=$(paste -sd, <<<"$failed")
    event failed "$checkpoint, \"exit_code\": $rc, \"nodes\": \"${failed:=unknown}\""
    if [ "$state" != RUNNING ]; then exclude; return "$rc"; fi
    # Since the last checkpoint, whose name may come back after a rollback
    failures=$(tac "$run/events.jsonl" | sed '/"event": "\(saved\|rollback\)"/q' |
      grep -c "\"failed\".*\"job\": \"$job\", $checkpoint")
    if [ "$failures" -ge "$max_failures" ]; then
      event crash_loop "$checkpoint, \"failures\": $failures"
      echo "crash loop: $failures failures without a new checkpoint, so the job ends (exit code $rc). Look for the first" \
        "error in $run/logs, remove its cause and submit the same command again: it resumes from the last checkpoint"
      return "$rc"
    fi
    [ "$(seconds_left)" -ge $((signal_delay_s + 60)) ] || break # Slurm warns of the time limit once only
    nodes=$(without "$alive" "$(bad_nodes)")
    echo "exit code $rc on node $failed; $(count "$nodes") nodes are left, at least $min_nodes are needed"
  done
  echo "exit code $rc: requeueing the job, it resumes from its last checkpoint"
  trap '' TERM # which comes at once
  scontrol requeue "$job" && exclude
  return "$rc"
}
