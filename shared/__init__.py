"""What the tasks share: the straight line from a configuration to scores, and the recurrent core they build from."""
