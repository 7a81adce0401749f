"""The cluster's nodes and the worker groups on them: what Ray is asked, and its autoscaler."""
