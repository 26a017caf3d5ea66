"""The terminal: exit codes, one message, and text that steers no terminal."""

import errno
import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console

from creature import console
from creature.console import only_errors_of, printable, progress, run, say, show_table, warn
from creature.errors import BrokenError, Interrupted, UserError
from helpers import ROOT

HOSTILE = "a\x1b[31m\x07\r\x9b\x7f\u2028\u202e\u2066\udcff[/a][bold]:smile:"
LITERAL = r"a\x1b[31m\x07\x0d\x9b\x7f\x2028\x202e\x2066\xdcff[/a][bold]:smile:"


def fails(error: BaseException, cause: BaseException | None = None) -> object:
    """The exit code of a program that raises the error."""

    def main() -> int:
        raise error from cause

    with pytest.raises(SystemExit) as left:
        run(main)
    return left.value.code


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 300 columns gets."""
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, width=300, highlight=False))
    return file


@pytest.mark.parametrize("kind", [UserError, BrokenError])
def test_a_mistake_or_damage_is_exit_code_2_and_one_message_on_the_error_stream(kind, capsys):
    assert fails(kind("images.size: must be 16 or more, got 3")) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "error: images.size: must be 16 or more, got 3\n"


def test_a_long_message_is_not_wrapped_and_a_listing_keeps_its_lines(capsys):
    fails(UserError(f"{'x' * 500}\n  second"))
    assert capsys.readouterr().err == f"error: {'x' * 500}\n  second\n"


@pytest.mark.parametrize("debug", ["", "1"])
def test_causes_are_shown_where_they_are_asked_for(debug, monkeypatch, capsys):
    monkeypatch.setenv("CREATURE_DEBUG", debug)
    assert fails(BrokenError("recipe.yaml: cannot be read"), OSError("the disk is gone\x1b[31m")) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert shown.endswith("error: recipe.yaml: cannot be read\n")
    assert [text in shown for text in ("OSError: the disk is gone", "direct cause", "in main")] == [bool(debug)] * 3


def test_what_saved_and_stopped_can_be_started_again(capsys):
    assert fails(Interrupted("saved in runs/mine; --resume goes on")) == 75
    assert capsys.readouterr().err == "saved in runs/mine; --resume goes on\n"


def test_a_library_logs_errors_alone_within_a_block(caplog):
    logger = logging.getLogger("a_library")
    logger.setLevel(logging.INFO)
    with pytest.raises(KeyError), only_errors_of("a_library"):
        logger.warning("inside")
        raise KeyError
    logger.info("outside")
    assert caplog.messages == ["outside"] and logger.level == logging.INFO


def test_an_interrupt_is_exit_code_130(capsys):
    assert fails(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("code", [0, 3])
def test_what_main_returns_is_the_exit_code(code, capsys):
    with pytest.raises(SystemExit) as left:
        run(lambda: code)
    assert left.value.code == code and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_what_may_not_be_read_or_written_is_one_sentence(number, capsys):
    assert fails(OSError(number, os.strerror(number), "runs/all/model.safetensors")) == 2
    assert capsys.readouterr().err == f"error: runs/all/model.safetensors: {os.strerror(number)}\n"


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


def test_a_hostile_table_is_shown_as_it_is(screen):
    show_table(HOSTILE, (HOSTILE, "[red]n[/]"), [(HOSTILE + "\nnew", "[/]"), (1, 0.5)])
    shown = screen.getvalue()
    assert shown.count(LITERAL) == 3 and rf"{LITERAL}\x0anew" in shown
    assert "[red]n[/]" in shown and "\x1b" not in shown and len(shown.splitlines()) == 7


def test_hostile_text_steers_no_real_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=terminal, force_terminal=True, highlight=False))
    say(HOSTILE)
    with progress() as bar:
        bar.add_task(printable(HOSTILE), total=1, speed="")
    assert "\x1b[31m" not in terminal.getvalue() and "[/a][bold]" in terminal.getvalue()


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
