"""A hundred hosts on a virtual clock: the cluster's own router and autoscaler over replicas that only take time."""
