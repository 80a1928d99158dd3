"""What every job of a study does on Slurm, in bash; slurm_script.py says what it stands behind and what it answers."""

JOB = r"""
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
mkdir -p "$folder" || exit 4
attempt=1
while [[ -e $folder/attempt_$attempt.log ]]; do attempt=$((attempt + 1)); done
launched=${launched//@JOB@/$job}
launched=${launched/@ATTEMPT@/$attempt}
partial=$folder/launch.json.$job  # a name of its own: who submitted it writes launch.json too, in this moment
echo "${launched/@AT@/$(date +%s)}" > "$partial" && mv "$partial" "$folder/launch.json" || exit 4
log=$folder/attempt_$attempt.log
echo "study: begins, and writes $log"  # what Slurm says behind this is about this start
exec > "$log" 2>&1
echo "study: job $job on $SLURM_JOB_NODELIST"

told=
step=
pass_on() {  # once only; where the step is about to be made, until it is there
    told=$1
    echo "study: told to save, $2"
    while [[ -n $step ]] && kill -0 "$step" 2> /dev/null; do
        scancel --signal=TERM "$SLURM_JOB_ID.0" 2> /dev/null && break
        sleep 1
    done
}
trap '[[ -n $told ]] || pass_on save "for the time limit is near"' USR1
trap '[[ -n $told ]] || pass_on end "and to end"' USR2
trap 'told=${told:-ended}' TERM

was_killed() {  # as torchrun and ft_launcher say it; -15 is whom they end themselves when another rank has failed
    grep -oE 'exitcode *: -[0-9]+' "$log" | grep -qv -e ': -15$'
}

before=$(saved 2> /dev/null)
code=1
if [[ -z $told ]]; then
    run &
    step=$!
    while kill -0 "$step" 2> /dev/null; do
        wait "$step"
        code=$?
    done
fi

if [[ -e $finished ]]; then
    echo "$exit_line 0"
    exit 0
fi
if [[ $code -eq 0 ]]; then  # a run that was cut by training.max_steps: nothing may begin behind it
    echo "error: it ended without $finished"
    code=1
fi
again=
if [[ $told == save ]]; then
    again="the time limit is near"
elif [[ -z $told ]] && { [[ $code -gt 128 ]] || was_killed; }; then
    again="a process was killed"
elif [[ -z $told ]] && grep -qE '^(rank [0-9]+: )?error: another rank was lost' "$log"; then  # runtime/roll_call.py
    again="a rank was lost"
elif [[ $told == ended ]]; then
    echo "study: Slurm ends this job"
    sleep 600 &
    wait $!
fi
if [[ -n $again ]]; then
    if [[ $(saved 2> /dev/null) != "$before" || ${SLURM_RESTART_COUNT:-0} -lt 3 ]]; then
        echo "study: back to the queue: $again"
        if scontrol requeue "$job"; then
            sleep 600  # Slurm ends this script
            exit 1
        fi
    else
        echo "error: $again, and neither this start nor the three before it saved anything"
    fi
fi
echo "$exit_line $code"
exit "$code"
"""
