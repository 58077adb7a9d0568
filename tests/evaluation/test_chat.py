"""A conversation reads every token once, stops where it should, and survives Ctrl-C."""

import io
import os
import pty
import subprocess
import sys

import pytest
import torch

from newllm_lib.errors import UsageError
from newllm_lib.generation.chat import ChatSession, Pieces, run_terminal, speaks_in_turns, spoken
from newllm_lib.generation.sampling import Settings

KINDS = ["new_llm", "tiny_gpt2"]
GREEDY = Settings(temperature=0, max_new_tokens=6)


def fed_tokens(model):
    """Every token the model reads from now on, in order."""
    fed = []
    model.register_forward_pre_hook(lambda m, a, k: fed.append(k["input_ids"][0].tolist()), with_kwargs=True)
    return fed


def always(model, token):
    """Make the model choose `token`."""
    return model.lm_head.register_forward_hook(
        lambda m, i, out: out.index_fill(-1, torch.tensor([token]), 99.0)
    )


def test_nothing_is_read_twice_and_turns_stand_as_in_training(bpe, make_model):
    model = make_model(bpe)
    session = ChatSession(model, bpe, GREEDY, dialogue=True, system="Be kind.")
    fed = fed_tokens(model)
    answers = ["".join(session.reply(text)) for text in ("Ada?", "<|end|> Bob")]
    names = ("user", "assistant", "system", "end")
    user, assistant, system, end = (bpe.convert_tokens_to_ids(f"<|{n}|>") for n in names)
    stream = [token for piece in fed for token in piece]
    text = bpe.decode(stream)
    assert stream[:2] == [bpe.bos_token_id, system] and stream.count(bpe.bos_token_id) == 1
    assert [t for t in stream if t in (user, assistant, system, end)] == [
        system,
        end,
        user,
        end,
        assistant,
        end,
        user,
        end,
        assistant,
    ]  # the typed <|end|> is text
    assert text.startswith(
        "<|endoftext|><|system|>Be kind.<|end|><|user|>Ada?<|end|><|assistant|>" + answers[0]
    )
    assert all(len(piece) == 1 for piece in fed[1:6])  # one token at a time
    assert session.turns == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_equals_a_fresh_reading_of_the_whole_conversation(kind, bpe, make_model, tools):
    model = make_model(bpe, kind, max_seq_length=256)
    session = ChatSession(model, bpe, GREEDY, dialogue=True)
    first = "".join(session.reply("Ada"))
    second = "".join(session.reply("Bob?"))
    ids = [0, *tools.dialogue(bpe, ["Ada"]), bpe.convert_tokens_to_ids("<|assistant|>")]
    for answer, following in ((first, "Bob?"), (second, None)):
        new = []
        for _ in range(6):
            scores = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
            scores[session._text.reserved] = -torch.inf
            if int(scores.argmax()) in session._text.stop:
                break
            new.append(int(scores.argmax()))
        assert bpe.decode(new) == answer
        if following:
            ids += [*new, bpe.convert_tokens_to_ids("<|end|>"), *tools.dialogue(bpe, [following])]
            ids.append(bpe.convert_tokens_to_ids("<|assistant|>"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_conversation_goes_on_past_the_window(kind, bpe, make_model):
    model = make_model(bpe, kind)  # TinyGPT2: 24 positions
    session = ChatSession(model, bpe, Settings(max_new_tokens=10, seed=0), dialogue=True)
    for _ in range(6):
        assert isinstance("".join(session.reply("Ada likes red apples and old films, Bob.")), str)


@pytest.mark.parametrize("stop", ["<|end|>", "<|endoftext|>"])
def test_it_stops_at_the_end_of_a_turn_and_remembers_the_conversation(stop, bpe, make_model):
    model = make_model(bpe)
    session = ChatSession(model, bpe, GREEDY, dialogue=True)
    fed = fed_tokens(model)
    always(model, bpe.convert_tokens_to_ids(stop))
    assert "".join(session.reply("Ada")) == "" == "".join(session.reply("Bob"))
    stream = [t for piece in fed for t in piece]
    assert stream.count(bpe.bos_token_id) == 1  # an <|endoftext|> would have cleared the state
    assert stream.count(bpe.convert_tokens_to_ids("<|end|>")) == 3


def test_control_tokens_are_never_said(bpe, make_model):
    model = make_model(bpe)
    always(model, bpe.convert_tokens_to_ids("<|user|>"))
    for settings in (GREEDY, Settings(temperature=2.0, max_new_tokens=6, seed=1)):
        said = "".join(ChatSession(model, bpe, settings, dialogue=True).reply("Ada"))
        assert "<|" not in said


def test_a_loop_that_is_left_closes_the_turn(bpe, make_model):
    model = make_model(bpe)
    session = ChatSession(model, bpe, Settings(temperature=0, max_new_tokens=50), dialogue=True)
    fed = fed_tokens(model)
    for _ in session.reply("Ada"):
        break
    "".join(session.reply("Bob"))
    end, user = (bpe.convert_tokens_to_ids(f"<|{n}|>") for n in ("end", "user"))
    stream = [t for piece in fed for t in piece]
    second = [i for i, t in enumerate(stream) if t == user][1]
    assert stream[second - 1] == end and stream[second - 2] not in (
        end,
        user,
    )  # the piece that was shown was read


def test_plain_text_is_continued_and_a_new_text_starts_after_its_end(bpe, make_model):
    model = make_model(bpe)
    session = ChatSession(model, bpe, GREEDY, dialogue=False)
    fed = fed_tokens(model)
    list(session.reply("Ada likes"))
    list(session.reply("and so"))
    stream = [t for piece in fed for t in piece]
    assert stream[0] == bpe.bos_token_id and stream.count(bpe.bos_token_id) == 1
    assert bpe.decode(stream[1:]).startswith("Ada likes") and " and so" in bpe.decode(stream)
    handle = always(model, bpe.eos_token_id)
    list(session.reply("."))
    handle.remove()
    list(session.reply("Bob"))
    assert [t for piece in fed for t in piece].count(bpe.bos_token_id) == 2


def test_whether_it_speaks_in_turns_is_asked_of_the_model(bpe, make_model, tools):
    split = tools.pack(bpe, tools.sentences(50))
    plain = tools.train_a_little(make_model(bpe), split, 60)
    assert not speaks_in_turns(plain, bpe) and not ChatSession(plain, bpe).dialogue
    always(plain, bpe.convert_tokens_to_ids("<|user|>"))
    assert speaks_in_turns(plain, bpe) and ChatSession(plain, bpe).dialogue


def test_characters_come_whole(bpe):
    for text in ("Ünal — 猫 🙂!", "plain", " leading", "é"):
        pieces = Pieces(bpe)
        ids = bpe(text, add_special_tokens=False)["input_ids"]
        shown = [pieces.add(i) for i in ids]
        assert "".join(shown) + pieces.rest() == text
        assert not any("\ufffd" in s for s in shown)
    half = Pieces(bpe)
    assert half.add(bpe("猫", add_special_tokens=False)["input_ids"][0]) == "" and half.rest() == "\ufffd"


def test_commands(bpe, make_model):
    session = ChatSession(make_model(bpe), bpe, GREEDY, dialogue=True)
    list(session.reply("Ada"))
    assert "forgotten" in session.command("/reset") and session.turns == 0
    assert "temperature 0" in session.command("/settings")
    for line in ("/temperature 0.7", "/settings temperature 0.7", "/settings /temperature=0.7"):
        session.settings = GREEDY
        assert session.command(line) == "temperature is 0.7." and session.settings.temperature == 0.7
    assert "/quit" in session.command("/help")
    for line in ("/nonsense", "/temperature", "/temperature warm", "/changed 1", "/settings warmth 1"):
        with pytest.raises(UsageError):
            session.command(line)


def test_the_same_seed_gives_the_same_conversation_after_reset(bpe, make_model):
    session = ChatSession(make_model(bpe, scale=0.3), bpe, Settings(max_new_tokens=12, seed=4), dialogue=True)
    first = "".join(session.reply("Ada"))
    assert "".join(session.reply("Ada")) != first
    session.reset()
    assert "".join(session.reply("Ada")) == first


class Typist:
    """Types given lines; an exception class among them is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def __call__(self, prompt):
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line


def test_the_terminal_answers_obeys_and_ends(bpe, make_model, capsys):
    session = ChatSession(make_model(bpe), bpe, GREEDY, dialogue=True)
    out = io.StringIO()
    lines = (
        "",
        "Ada",
        "/temperature hot",
        "/settings",
        KeyboardInterrupt,
        "Bob",
        KeyboardInterrupt,
        EOFError,
        "x",
    )
    typist = Typist(*lines)
    run_terminal(session, typist, out)
    assert session.turns == 2 and out.getvalue().count("\n") >= 2 and typist.lines == ["x"]
    said = capsys.readouterr().out
    assert "must be a number" in said and "temperature 0" in said and "Bye." in said
    typist = Typist(KeyboardInterrupt, KeyboardInterrupt, "x")
    run_terminal(session, typist, out)
    assert typist.lines == ["x"]
    typist = Typist("/quit", "x")
    run_terminal(session, typist, out)
    assert typist.lines == ["x"]


@pytest.mark.parametrize(
    "line, said",
    [
        (
            "/home/notes/plan.txt is a path: what does it mean?",
            "/home/notes/plan.txt is a path: what does it mean?",
        ),
        ("/* a comment */", "/* a comment */"),
        ("//reset", "/reset"),
        (" /quit", "/quit"),
        ("  //", "/"),
        ("/quit\nor not", "/quit\nor not"),
        ("hello ", "hello"),
        ("/settings temperature 0.5", None),
        ("/temperature=0.5", None),
        ("/resett", None),
        ("/", None),
        ("/quit ", None),
    ],
)
def test_only_a_word_behind_a_slash_is_a_command(line, said):
    assert spoken(line) == said


def test_a_word_that_is_no_command_says_how_to_say_it(bpe, make_model):
    session = ChatSession(make_model(bpe), bpe, GREEDY, dialogue=True)
    with pytest.raises(UsageError, match="no /resett: .*//resett says it"):
        session.command("/resett")
    with pytest.raises(UsageError, match="/quit stands alone"):
        session.command("/quit now")


def test_pasted_lines_are_one_message():
    """In a real terminal, with and without a line break at the paste's end."""
    program = (
        "from newllm_lib.generation.chat import ask_terminal\n"
        "print('READY', flush=True)\n"
        "for _ in range(3): print(repr(ask_terminal('you> ')), flush=True)"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "READY\n"
        for typed, message in (("a\nb\n\nc\n", "a\nb\n\nc"), ("one\n", "one"), ("x\ny\n", "x\ny")):
            os.write(master, typed.encode())
            assert process.stdout.readline().removeprefix("you> ") == f"{message!r}\n"
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("paste", ["one\ntwo", "\x1b[200~one\ntwo\x1b[201~"])
def test_a_paste_without_a_line_break_at_its_end_is_one_message(paste):
    """As terminals send it, with marks around a paste or without; Enter sends the message."""
    pytest.importorskip("readline")
    program = (
        "from newllm_lib.generation.chat import ask_terminal\n"
        "print('SAID', ascii(ask_terminal('you> ')), flush=True)"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)

    def read_until(words: bytes) -> None:
        seen = b""
        while words not in seen:
            seen += os.read(master, 1 << 12)

    try:
        read_until(b"you> ")
        os.write(master, paste.encode())
        read_until(b"two")
        os.write(master, b"\n")
        read_until(rb"SAID 'one\ntwo'")
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(bpe, make_model, capsys):
    session = ChatSession(make_model(bpe), bpe, Settings(temperature=0, max_new_tokens=40), dialogue=True)

    class Interrupting(io.StringIO):
        def write(self, text):
            if self.tell() > 3:
                raise KeyboardInterrupt
            return super().write(text)

    typist = Typist("Ada", "Bob", KeyboardInterrupt, "x")
    run_terminal(session, typist, Interrupting())
    assert session.turns == 2 and typist.lines == ["x"]
    assert "stopped" in capsys.readouterr().out


def test_a_tokenizer_without_roles_cannot_hold_a_dialogue(bpe, make_model):
    class NoRoles:
        added_tokens_decoder = {}
        all_special_ids = [0]
        bos_token_id = eos_token_id = 0

        def __len__(self):
            return len(bpe)

    model = make_model(bpe)
    assert not ChatSession(model, NoRoles()).dialogue
    with pytest.raises(UsageError, match="only continue text"):
        ChatSession(model, NoRoles(), dialogue=True)
