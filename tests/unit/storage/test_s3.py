"""What S3 is not even asked for."""

from __future__ import annotations

import pytest

from orchestrator.errors import StorageDenied
from orchestrator.spec import StorageSpec
from orchestrator.storage import open_store


@pytest.mark.parametrize(
    ("settings", "environ", "said"),
    [
        ({}, {"AWS_PROFILE": "nobody-has-this"}, "s3://bucket cannot be opened: .*nobody-has-this"),
        ({"endpoint_url": "http://minio_1:9000"}, {}, "s3://bucket at http://minio_1:9000 cannot be opened: Invalid endpoint"),
    ],
)
def test_a_store_that_cannot_be_opened_is_an_error_of_storage(settings, environ, said):
    with pytest.raises(StorageDenied, match=said):
        open_store(StorageSpec(url="s3://bucket", **settings), environ)
