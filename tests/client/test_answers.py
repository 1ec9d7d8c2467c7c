"""Answers are compared with the metadata: what does not fit is an error, never a crash or a wrong array."""

import numpy as np
import pytest
from lying_server import LyingServer
from predict_process import run_predict
from tritonclient.grpc import service_pb2

from unitrain.client import Client
from unitrain.errors import ClientError, RequestError


@pytest.fixture(scope="module")
def running():
    """One lying server for all tests of this file."""
    server = LyingServer()
    yield server
    server.stop()


@pytest.fixture
def liar(running):
    """The server, honest again."""
    running.be_honest()
    return running


def _raw(data):
    return lambda answer: answer.raw_output_contents.__setitem__(0, data)


def _shape(*shape):
    def spoil(answer):
        del answer.outputs[0].shape[:]
        answer.outputs[0].shape.extend(shape)

    return spoil


def _field(name, value, *, of_output=False):
    return lambda answer: setattr(answer.outputs[0] if of_output else answer, name, value)


def _no_rows(answer):
    _shape(0, 3)(answer)
    _raw(b"")(answer)


def _fewer_rows(answer):
    _shape(answer.outputs[0].shape[0] - 1, 3)(answer)
    answer.raw_output_contents[0] = answer.raw_output_contents[0][:-12]


def _more_rows(answer):
    _shape(answer.outputs[0].shape[0] + 1, 3)(answer)
    answer.raw_output_contents[0] += bytes(12)


def _flat(answer):
    _shape(len(answer.raw_output_contents[0]) // 4)(answer)


def _other_dims(answer):
    _shape(3, answer.outputs[0].shape[0])(answer)


def _float64(answer):
    values = np.frombuffer(answer.raw_output_contents[0], np.float32).astype(np.float64)
    answer.outputs[0].datatype, answer.raw_output_contents[0] = "FP64", values.tobytes()


def _again(answer):
    answer.outputs.append(answer.outputs[0])
    answer.raw_output_contents.append(answer.raw_output_contents[0])


def _one_more(answer):
    _again(answer)
    answer.outputs[1].name = "z"


def _none(answer):
    del answer.outputs[:], answer.raw_output_contents[:]


def _no_values(answer):
    del answer.raw_output_contents[:]


LIES = {
    "too few rows": _fewer_rows,
    "too many rows": _more_rows,
    "no rows": _no_rows,
    "another rank": _flat,
    "other dims": _other_dims,
    "another dtype": _float64,
    "a dtype of the same size": _field("datatype", "INT32", of_output=True),
    "an unknown dtype": _field("datatype", "FP8\x1b[2J", of_output=True),
    "strings": _field("datatype", "BYTES", of_output=True),
    "a missing output": _none,
    "an output twice": _again,
    "an output more": _one_more,
    "another name": _field("name", "z", of_output=True),
    "a name with NUL": _field("name", "y\0", of_output=True),
    "no values": _no_values,
    "values cut off": _raw(bytes(7)),
    "empty values": _raw(b""),
    "a negative shape": _shape(-1, 3),
    "a huge shape": _shape(2**62, 2**62, 4),
    "a shape of two huge numbers": _shape(2**32, 2**32),
    "many axes": _shape(*[1] * 1000),
    "another model": _field("model_name", "other"),
    "a version that is no number": _field("model_version", "one"),
    "a negative version": _field("model_version", "-1"),
    "a huge version": _field("model_version", "9" * 10_000),
}


@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_does_not_fit_is_an_error_of_its_samples(liar, name):
    """The other requests' samples are answered; one request alone raises the error."""
    liar.spoil = LIES[name]
    samples = [{"x": np.full(3, value, np.float32)} for value in (1, 13, 2, 13, 3)]
    with Client(liar.url) as client:
        results = list(client.stream("linear", samples, batch_rows=1, window=2))
        with pytest.raises(RequestError, match="model linear: the server's answer does not fit: "):
            client.predict("linear", x=[13, 13, 13])
        assert client.predict("linear", x=[1, 2, 3]).outputs["y"].tolist() == [2, 4, 6]
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    for place, value in ((0, 1), (2, 2), (4, 3)):
        assert results[place].outputs["y"].tolist() == [2 * value] * 3
    for place in (1, 3):
        assert results[place].outputs is None
        assert f"sample {place}: model linear: the server's answer does not fit: " in str(
            results[place].error
        )
        assert len(str(results[place].error)) < 300


def test_many_rows_of_one_request_fail_together(liar):
    """A batch with too few rows gives none of its samples another's answer."""
    liar.spoil = _fewer_rows
    with Client(liar.url) as client:
        samples = [{"x": np.full(3, 13, np.float32)} for _ in range(8)]
        results = list(client.stream("linear", samples, batch_rows=8))
        assert all(isinstance(result.error, RequestError) for result in results)
        assert len(results) == 8


def test_the_version_asked_for_must_answer(liar):
    """Another version's answer is none."""
    liar.spoil = _field("model_version", "2")
    with Client(liar.url) as client:
        assert client.predict("linear", x=[13, 13, 13]).version == 2
        with pytest.raises(RequestError, match="is of version 2, version 1 was requested"):
            client.predict("linear", x=[13, 13, 13], version=1)


def _messages(*answers):
    return [service_pb2.ModelStreamInferResponse(infer_response=answer) for answer in answers]


def _with_id(answer, number):
    copy = service_pb2.ModelInferResponse()
    copy.CopyFrom(answer)
    copy.id = number
    return copy


@pytest.mark.parametrize(
    "number", ["", "0", "999", "-1", "x" * 100_000], ids=["none", "0", "999", "-1", "long"]
)
def test_an_answer_that_names_no_request_is_not_taken(liar, number):
    """Its request is an error when its time is up; the others are answered."""
    liar.spoil = lambda answer: _messages(_with_id(answer, number))
    samples = [{"x": np.full(3, value, np.float32)} for value in (1, 13, 2)]
    with Client(liar.url) as client:
        results = list(client.stream("linear", samples, batch_rows=1, timeout_s=1))
    assert [result.error and result.error.kind for result in results] == [None, "deadline", None]
    assert results[2].outputs["y"].tolist() == [4, 4, 4]


def test_answers_that_come_twice_count_once(liar):
    """No sample gets the answer of another."""
    liar.spoil = lambda answer: _messages(answer, answer, answer)
    samples = [{"x": np.full(3, value, np.float32)} for value in [13, 1, 13, 2] * 10]
    with Client(liar.url) as client:
        results = list(client.stream("linear", samples, batch_rows=1, window=4))
    assert [result.outputs["y"][0] for result in results] == [26, 2, 26, 4] * 10


def test_errors_of_the_server_are_cut_and_counted(liar):
    """A message of a megabyte is quoted by its beginning; the others are answered."""
    liar.spoil = lambda _answer: [service_pb2.ModelStreamInferResponse(error_message="\x1b[2J no " * 150_000)]
    samples = [{"x": np.full(3, value, np.float32)} for value in (1, 13, 2)]
    with Client(liar.url) as client:
        results = list(client.stream("linear", samples, batch_rows=1))
    assert [result.error is None for result in results] == [True, False, True]
    assert len(str(results[1].error)) < 1200


def test_what_a_server_says_is_escaped_on_the_terminal(liar):
    """By `predict`: one line, exit code 1."""
    liar.spoil = lambda _answer: [
        service_pb2.ModelStreamInferResponse(error_message="\x1b]0;title\x07 no\n\u202eerror: \x9b2J")
    ]
    done = run_predict("linear", "--url", liar.url, "--input", "-", stdin='{"x": [13, 13, 13]}\n')
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: 1 of 1 samples failed")
    assert r"\x1b]0;title\x07 no \u202eerror: \x9b2J" in done.err
    assert done.err.replace("\n", "").isprintable()


def _tensor(**fields):
    def spoil(metadata):
        for name, value in fields.items():
            if name == "shape":
                del metadata.outputs[0].shape[:]
                metadata.outputs[0].shape.extend(value)
            else:
                setattr(metadata.outputs[0], name, value)

    return spoil


METADATA = {
    "huge dims": _tensor(shape=[-1, 2**40, 2**40]),
    "a row over the limit": _tensor(shape=[-1, 2**30]),
    "negative dims": _tensor(shape=[-1, -7]),
    "many axes": _tensor(shape=[-1] * 1000),
    "no batch axis": _tensor(shape=[3]),
    "a batch axis of fixed length": _tensor(shape=[4, 3]),
    "no axis": _tensor(shape=[]),
    "an unknown dtype": _tensor(datatype="BF16"),
    "a hostile dtype": _tensor(datatype="\x1b[2J" * 10_000),
    "a name with NUL": _tensor(name="y\0"),
    "no name": _tensor(name=""),
    "a long name of control characters": _tensor(name="\x1b" * 10_000),
    "a name twice": lambda m: m.outputs.append(m.outputs[0]),
    "a million outputs": lambda m: m.outputs.extend([m.outputs[0]] * 10**6),
    "no outputs": lambda m: m.ClearField("outputs"),
    "no inputs": lambda m: m.ClearField("inputs"),
    "another model": lambda m: setattr(m, "name", "other"),
    "a version that is no number": lambda m: m.versions.append("newest"),
    "a huge version": lambda m: m.versions.append("9" * 10_000),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_describes_no_model_is_refused(liar, name):
    """In one sentence that names the server and the model."""
    liar.spoil_metadata = METADATA[name]
    with Client(liar.url) as client, pytest.raises(ClientError, match=f"^{liar.url}: model linear") as caught:
        client.model("linear")
    assert len(str(caught.value)) < 400


def test_statistics_that_are_none_are_refused(liar):
    """A version that is no number."""
    liar.statistics = [("linear", "x")]
    with Client(liar.url) as client, pytest.raises(ClientError, match="a version that is no number"):
        client.models()


def test_a_negative_batch_size_is_refused(liar):
    """In one sentence."""
    liar.spoil_config = lambda answer: setattr(answer.config, "max_batch_size", -1)
    with Client(liar.url) as client, pytest.raises(ClientError, match="max_batch_size is -1"):
        client.model("linear")


def test_a_huge_batch_size_costs_nothing(liar):
    """Two thousand million rows a request are allowed, and no memory is set aside for them."""
    liar.spoil_config = lambda answer: setattr(answer.config, "max_batch_size", 2**31 - 1)
    with Client(liar.url) as client:
        results = list(client.stream("linear", [{"x": np.ones(3, np.float32)}] * 100))
    assert all(result.error is None for result in results)
