#!/bin/bash
# Runs on every worker node of aws.yaml: two minutes before EC2 takes a spot instance away it tells Ray, by which a training keeps a checkpoint in time.
metadata=http://169.254.169.254/latest
while sleep 5; do
    token=$(wget -qO- --method=PUT --header="X-aws-ec2-metadata-token-ttl-seconds: 60" $metadata/api/token) || continue
    wget -qO- --header="X-aws-ec2-metadata-token: $token" $metadata/meta-data/spot/instance-action || continue # 404: it stays
    ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "EC2 takes the spot instance away" --deadline-remaining-seconds 110 && exit
done
