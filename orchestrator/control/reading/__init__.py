"""What people are shown of jobs and of the queue, without what they do not look at."""
