"""What the control plane remembers: the job store, its tables, users, audit log and lease."""
