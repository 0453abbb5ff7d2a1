"""The device that computes: which one a name means, and how it is called."""

from types import SimpleNamespace

import pytest
import torch

from machine.device import device_name, gpu_uuid, resolve_device

UUID = "GPU-0a1b2c3d-0000-1111-2222-333344445555"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "--device 'gpu': choose auto, cpu, cuda"),
        ("meta", "--device 'meta': choose auto, cpu, cuda"),
        ("cuda:99", r"--device cuda:99: this machine has \d+ such GPUs?"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, words):
    with pytest.raises(ValueError, match=words):
        resolve_device(name)


@pytest.mark.parametrize(("threads", "words"), [(1, "(1 thread)"), (2, "(2 threads)")])
def test_a_cpu_is_named_with_its_threads(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device_name(torch.device("cpu")).endswith(words)


def test_a_gpu_has_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    named = [str(resolve_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert named == ["cuda:0", "cuda:0", "cuda:1", "cpu"]


@pytest.mark.parametrize(("told", "uuid"), [(UUID[4:], UUID), (UUID, UUID), ("MIG-7", "MIG-7")])
def test_uuids_are_written_as_nvml_does(monkeypatch, told, uuid):
    properties = SimpleNamespace(uuid=told)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert gpu_uuid(torch.device("cuda", 0)) == uuid
