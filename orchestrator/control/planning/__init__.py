"""From the rows of the job store to the scheduler's plan, and from the plan to what is done and told."""
