"""What people write: durations, addresses, traces, prompts; and what they are told when it is wrong."""

from pathlib import Path

import pytest
from hotstart.loadtest.arrivals import Arrival
from hotstart.loadtest.durations import format_milliseconds, parse_duration
from hotstart.loadtest.plan import LoadPlan, make_constant_plan, normalise_url, shard_plan
from hotstart.loadtest.prompts import BUILT_IN_PROMPTS, CHARACTERS_PER_TOKEN, fit_prompt, read_prompts
from hotstart.loadtest.trace import read_trace


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("250ms", 0.25), ("2m", 120), ("1h", 3600), ("1.5s", 1.5), ("400us", 0.0004), (" 5s ", 5)],
)
def test_durations_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["30", "s", "", "-5s", "5 s", "1m30s", "nans", "5sec"])
def test_durations_that_nobody_can_read_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30s"):
        parse_duration(text)


def test_milliseconds_are_shown_as_precisely_as_their_size_deserves() -> None:
    assert [format_milliseconds(s) for s in (0.000213, 0.0345, 1.2041)] == ["0.21 ms", "34.5 ms", "1204 ms"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://h:80", "http://h:80"),
        ("http://h/", "http://h"),
        ("https://h/v1", "https://h"),
        ("http://h/base/v1/", "http://h/base"),
        ("http://h/v1/completions", "http://h"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_may_be_written_with_or_without_v1(given: str, kept: str) -> None:
    assert normalise_url(given) == kept


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "ftp://h",
        "http://",
        "",
        "http://h:99999",
        "http://h?x=1",
        "http://[::1",
        "http://a..b",
        f"http://{'a' * 64}",
    ],
)
def test_what_is_no_address_is_refused_naming_the_flag(url: str) -> None:
    with pytest.raises(ValueError, match="--url"):
        normalise_url(url)


def test_a_plan_refuses_what_it_could_not_obey() -> None:
    arrivals = (Arrival(0.0, cancel=True),)
    with pytest.raises(ValueError, match="--cancel-after"):
        LoadPlan("http://h", "m", arrivals)
    with pytest.raises(ValueError, match="--model"):
        LoadPlan("http://h", "", ())
    with pytest.raises(ValueError, match="--timeout must be longer"):
        LoadPlan("http://h", "m", (), timeout_s=0)
    with pytest.raises(ValueError, match="--slo must be longer"):
        LoadPlan("http://h", "m", (), slo_s=-1)
    with pytest.raises(ValueError, match="no prompt"):
        LoadPlan("http://h", "m", (), prompts=())
    for name in ("content-length", "Transfer-Encoding"):
        with pytest.raises(ValueError, match=f"--header '{name}'"):
            LoadPlan("http://h", "m", (), headers={name: "1"})


def test_a_process_without_a_request_gets_no_plan() -> None:
    plan = make_constant_plan("http://h", "m", rate=1, duration=2)
    shares = shard_plan(plan, 4)
    assert [len(share.arrivals) for share in shares] == [1, 1]
    assert all(share.planned_s == 2 for share in shares)


def test_a_trace_is_read_in_its_own_words(trace_file: Path) -> None:
    rows = read_trace(trace_file)
    assert [row.context_tokens for row in rows] == [120, 900, 40, 64]
    assert [row.generated_tokens for row in rows] == [8, 4, 200, 16]
    assert [round(row.at - rows[0].at, 3) for row in rows] == [0, 0.05, 0.05, 2.25]


def test_a_trace_may_count_in_seconds_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n1.5,3,4\n", encoding="utf-8")
    assert read_trace(path)[0].at == 1.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "columns .* missing"),
        ("TIMESTAMP,ContextTokens\n", "GeneratedTokens is missing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "line 2: TIMESTAMP 'noon'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,1\nnan,1,1\n", "line 3: TIMESTAMP 'nan'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\ninf,1,1\n", "line 2: TIMESTAMP 'inf'"),
        ('TIMESTAMP,ContextTokens,GeneratedTokens\n"1,1,1\n' + "2,10,10\n" * 20_000, "no CSV .* quotation mark"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,1\n2,x,1\n", "line 3: ContextTokens 'x'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1\n", "line 2: GeneratedTokens None"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,1,-3\n", "line 2: GeneratedTokens '-3'"),
    ],
)
def test_a_broken_trace_is_refused_by_line_and_column(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_trace(path)


def test_files_that_are_not_there_or_no_text_are_told_by_their_flag(tmp_path: Path) -> None:
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"--trace .*No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(ValueError, match=r"--trace .*cannot be read"):
        read_trace(binary)
    with pytest.raises(ValueError, match=r"--prompts .*No such file"):
        read_prompts(tmp_path / "none")
    with pytest.raises(ValueError, match=r"--prompts .*cannot be read"):
        read_prompts(binary)


def test_prompts_come_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "def f():"}\n\n{"prompt": "x = ", "other": 1}\n')
    assert read_prompts(path) == ("def f():", "x = ")


@pytest.mark.parametrize("character", ["\u2028", "\u0085"])
def test_prompts_may_hold_what_json_allows_and_begin_with_a_byte_order_mark(tmp_path: Path, character: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(f'\ufeff{{"prompt": "a{character}b"}}\r\n{{"prompt": "c"}}\r\n'.encode())
    assert read_prompts(path) == (f"a{character}b", "c")


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "no prompt in it"), ("{", "line 1: this is no JSON"), ("[]", "line 1"), ('{"prompt": ""}', "non-empty")],
)
def test_broken_prompts_are_refused_by_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_prompts(path)


@pytest.mark.parametrize("tokens", [1, 5, 40, 512, 7000])
def test_a_prompt_is_made_as_long_as_the_trace_says_and_keeps_its_end(tokens: int) -> None:
    for index, prompt in enumerate(BUILT_IN_PROMPTS):
        made = fit_prompt(BUILT_IN_PROMPTS, index, tokens)
        assert len(made) == tokens * CHARACTERS_PER_TOKEN
        assert made.endswith(prompt) or prompt.endswith(made)
    assert fit_prompt(BUILT_IN_PROMPTS, 0, None) == BUILT_IN_PROMPTS[0]
