"""What the installed libraries say is known: real errors of torch, numpy, DeepSpeed and boto3, whose words change with versions."""

from __future__ import annotations

import datetime
import socket

import boto3
import botocore.config
import numpy as np
import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from orchestrator.runtime.failure import describe


def memory_of_torch():
    torch.empty(10**15)


def memory_of_numpy():
    np.ones((10**7, 10**7))


def shapes():
    torch.ones(2, 3) @ torch.ones(2, 3)


def index():
    torch.nn.Embedding(3, 4)(torch.tensor([5]))


def anomaly():
    with torch.autograd.detect_anomaly(check_nan=True):
        zero = torch.zeros(1, requires_grad=True)
        (torch.sqrt(zero) * 0).sum().backward()


def probabilities():
    torch.multinomial(torch.tensor([float("nan"), 1.0]), 1)


def logits():
    torch.distributions.Categorical(logits=torch.tensor([float("nan")]))


def loss_scale():
    scaler = DynamicLossScaler(
        init_scale=1, scale_window=1, min_scale=1, delayed_shift=1, consecutive_hysteresis=False, raise_error_at_min_scale=True,
        dtype=torch.half,
    )  # fmt: skip
    scaler.update_scale(True)


def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        dist.TCPStore("127.0.0.1", holder.getsockname()[1], 2, True, timeout=datetime.timedelta(seconds=1))


def batches():
    DeepSpeedConfig({"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2})


def unreachable_store():
    quick = botocore.config.Config(retries={"max_attempts": 1}, connect_timeout=1)
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    boto3.client("s3", endpoint_url="http://127.0.0.1:9", region_name="us-east-1", config=quick, **keys).get_object(Bucket="b", Key="k")


@pytest.mark.parametrize(
    "failing, reason, remedy",
    [
        (memory_of_torch, "HOST_OUT_OF_MEMORY", "SMALLER_MICRO_BATCH"),
        (memory_of_numpy, "HOST_OUT_OF_MEMORY", "SMALLER_MICRO_BATCH"),
        (shapes, "USER_ERROR", "RETRY_ONCE"),
        (index, "USER_ERROR", "RETRY_ONCE"),
        (anomaly, "NAN", "RETRY_ONCE"),
        (probabilities, "NAN", "RETRY_ONCE"),
        (logits, "NAN", "RETRY_ONCE"),
        (loss_scale, "NAN", "RETRY_ONCE"),
        (taken_port, "START_UP", "RETRY"),
        (batches, "CONFIGURATION", "NONE"),
        (unreachable_store, "STORAGE", "WAIT"),
    ],
)
def test_a_librarys_error_is_known_by_its_words(failing, reason, remedy):
    with pytest.raises(Exception) as found:
        failing()
    told = describe(found.value, __file__)
    assert (told["end_reason"], told["remedy"]) == (reason, remedy), told["message"]


def test_an_error_of_the_devices_memory_is_known_by_its_class():
    assert describe(torch.OutOfMemoryError("whatever it says"), __file__)["end_reason"] == "OUT_OF_MEMORY"
