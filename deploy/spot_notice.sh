#!/usr/bin/env bash
# Waits for AWS's notice that this spot instance will be taken, then has Ray drain the node: no new work comes to it.
#
#   spot_notice.sh HEAD_ADDRESS        for example 10.0.0.12:6379; ray_cluster.yaml starts it on every worker
#
# The notice comes two minutes ahead, as an object of the instance's metadata service that is not there before.
set -euo pipefail

head_address=$1
metadata=${SPOT_NOTICE_METADATA:-http://169.254.169.254} # the address is AWS's; tests have another
every=${SPOT_NOTICE_EVERY:-5}                            # seconds between questions
deadline=100                                             # seconds until the node counts as gone; 20 are kept back

while true; do
    # A token lives for the one question; a service that does not answer is asked again.
    if token=$(curl --silent --fail --max-time 5 --request PUT \
        --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") &&
        notice=$(curl --silent --fail --max-time 5 \
            --header "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/spot/instance-action"); then
        echo "notice: $notice"
        exec ray drain-node --address "$head_address" --reason DRAIN_NODE_REASON_PREEMPTION \
            --reason-message "spot instance is taken back" --deadline-remaining-seconds "$deadline"
    fi
    sleep "$every"
done
