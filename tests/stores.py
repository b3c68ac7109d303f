"""Object stores on this machine, for tests: an S3 and a Google Cloud Storage emulator, each with one empty bucket."""

import contextlib
import importlib
import logging
import urllib.request

import pytest

from lsm_jax import storage

BUCKET = "bucket"


@contextlib.contextmanager
def emulator(scheme):
    """Runs an emulator in this process. Environment variables lead this process and its children to it."""
    with pytest.MonkeyPatch.context() as patch, _s3() if scheme == "s3" else _google() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        storage._client.cache_clear()
        yield scheme
    storage._client.cache_clear()


def _needs(module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"the extra `test` is not installed ({error})")


@contextlib.contextmanager
def _s3():
    server = _needs("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"))
    yield {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    server.stop()


@contextlib.contextmanager
def _google():
    module = _needs("gcp_storage_emulator.server")
    server = module.create_server("127.0.0.1", 0, True, default_bucket=BUCKET)
    read = module._read_raw_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read_raw_data", lambda handler: _with_its_last_byte(read(handler)))
        server.start()
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server._api._httpd.server_address[1]}"}
        server.stop()


def _with_its_last_byte(request):
    """The client ends an object with a line feed; where its last byte is a carriage return, the emulator drops both."""
    end = b"\n--==0==--"
    return request[: -len(end)] + b"\r" + end if request and request.endswith(end) else request
