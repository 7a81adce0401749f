"""The user's own code: which files of the working directory are a job's, kept once by content, unpacked once on each node."""
