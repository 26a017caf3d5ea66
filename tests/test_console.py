"""What a person sees: exit codes, one message, and text that steers no terminal."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from creature import console
from creature.console import printable, progress, run, say, show_table, warn
from creature.errors import UserError
from helpers import ROOT

HOSTILE = "a\x1b[31m\x07\r\x9b\x7f\u2028\u202e\u2066\udcff[/a][bold]:smile:"
LITERAL = r"a\x1b[31m\x07\x0d\x9b\x7f\x2028\x202e\x2066\xdcff[/a][bold]:smile:"


def fails(error: BaseException) -> int:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as left:
        run(main)
    return left.value.code


def test_a_user_error_is_exit_code_2_and_one_message_on_the_error_stream(capsys):
    assert fails(UserError("images.size: must be 16 or more, got 3")) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "error: images.size: must be 16 or more, got 3\n"


def test_a_long_message_is_not_wrapped_and_a_listing_keeps_its_lines(capsys):
    fails(UserError(f"{'x' * 500}\n  second"))
    assert capsys.readouterr().err == f"error: {'x' * 500}\n  second\n"


def test_an_interrupt_is_exit_code_130(capsys):
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("code", [0, 3])
def test_what_main_returns_is_the_exit_code(code, capsys):
    with pytest.raises(SystemExit) as left:
        run(lambda: code)
    assert left.value.code == code and capsys.readouterr() == ("", "")


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.parametrize(("rank", "start"), [("0", "error: "), ("1", "[process 1] error: ")])
def test_another_process_says_which_it_is(rank, start, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    fails(UserError("no"))
    assert capsys.readouterr().err == f"{start}no\n"


def test_control_characters_are_written_out():
    assert printable(HOSTILE) == LITERAL
    assert printable("a\tb é 蜂 🐜") == "a\tb é 蜂 🐜"
    assert printable("a\nb") == r"a\x0ab" and printable(5) == "5"


@pytest.mark.parametrize("show", [say, warn, lambda text: fails(UserError(text))])
def test_hostile_text_and_markup_are_shown_as_they_are(show, capsys):
    show(HOSTILE)
    shown = capsys.readouterr()
    assert (shown.out + shown.err).removeprefix("warning: ").removeprefix("error: ") == f"{LITERAL}\n"


def test_a_hostile_table_is_shown_as_it_is(monkeypatch):
    monkeypatch.setattr(console, "console", Console(file=io.StringIO(), width=300, highlight=False))
    show_table(HOSTILE, (HOSTILE, "[red]n[/]"), [(HOSTILE + "\nnew", "[/]"), (1, 0.5)])
    shown = console.console.file.getvalue()
    assert shown.count(LITERAL) == 3 and rf"{LITERAL}\x0anew" in shown
    assert "[red]n[/]" in shown and "\x1b" not in shown and len(shown.splitlines()) == 7


def test_hostile_text_steers_no_real_terminal(monkeypatch):
    monkeypatch.setattr(console, "console", Console(file=io.StringIO(), force_terminal=True, highlight=False))
    say(HOSTILE)
    with progress() as bar:
        bar.add_task(printable(HOSTILE), total=1, speed="")
    assert "\x1b[31m" not in console.console.file.getvalue() and "[/a][bold]" in console.console.file.getvalue()


def test_a_process_that_is_not_the_first_warns_of_nothing(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "quiet", True)
    warn("once is enough")
    say("once is enough")
    assert capsys.readouterr() == ("", "")


def test_progress_shows_nothing_where_the_output_is_no_terminal(capsys):
    with progress() as bar:
        bar.update(bar.add_task("x", total=1, speed=""), advance=1)
    assert capsys.readouterr() == ("", "")


def script(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    lines = f"from creature.console import *\ndef main():\n    {code}\n    return 0\nrun(main)"
    return subprocess.run(
        [sys.executable, "-c", lines],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# A job of a shell that runs in the background is born deaf to SIGINT.
INTERRUPTED = (
    "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.kill(os.getpid(), signal.SIGINT); signal.pause()"
)


def test_a_real_process_ends_without_a_traceback():
    done = script("raise UserError('no such file')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no such file\n")
    done = script(INTERRUPTED)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_name_that_the_output_cannot_encode_ends_no_run():
    done = script("say('caf\\xe9 \\u8702')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\u8702\n")
