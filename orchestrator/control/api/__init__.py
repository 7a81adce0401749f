"""The HTTP API of the control plane. Its routes are thin: what they do is `orchestrator.control.client.Client`.

    app.py        the application: who shares what, in which order requests are judged
    access.py     who asks: bearer tokens, reads without one on this machine
    answers.py    JSON, and errors as status codes with the same words as on the command line
    shapes.py     what goes in and out, for the OpenAPI schema
    jobs.py       /v1/jobs...
    cluster.py    /v1/nodes, /v1/cluster, /v1/queue, /v1/policy, /v1/audit, /v1/user, /v1/health, /metrics
    users.py      /v1/users
    code.py       /v1/code: packaged working directories
    listing.py    lists of jobs, kept until a row changes
    views.py      /v1/overview, /v1/jobs/JOB/page, curve, tail: what the page shows, with ETags
    page.py       /ui/: the page itself, plain files under `ui/`
    turns.py      how many requests wait for object stores or MLflow at once
    follow.py     how a request waits for news without holding a thread
    metrics.py    what Prometheus reads
    server.py     the thread it runs in, beside the controller

Followers ask again and again with `wait_s` (long polling): the place in events and logs is a number or an offset that lies with the
reader, so that nothing is lost or told twice when a connection or the server goes.
"""
