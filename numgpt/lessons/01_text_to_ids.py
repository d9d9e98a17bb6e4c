# %% [markdown]
# # 1 From text to ids
#
# A language model does arithmetic, so a text has to become numbers first, and the numbers a text
# again at the end. This lesson builds the way there: **byte-pair encoding**, which GPT-2, GPT-4,
# Llama and Qwen all use. It is forty lines of Python. By the end you can train it, use it, and say
# why a model has trouble counting the letters of a word.
#
# In this course `check(your_function)` tells you whether an exercise is right and, where it is not,
# what differs. Solutions are folded away at the end of each notebook, and `solution("1.1")` prints
# one. What follows an exercise uses your function; to leave one out and go on, write
# `merge = yours("1.2")`, which is the course's as long as yours is not right. Nothing is sent
# anywhere.

# %%
import time
from collections import Counter
from itertools import pairwise

import numgpt
from numgpt.lessons import check, figure, solution, yours

# %% [markdown]
# ## Bytes
#
# A computer stores text as bytes, numbers from 0 to 255. In UTF-8 an English letter is one byte, an
# é two, a Chinese character three, an emoji four.

# %%
for text in ("cat", "café", "猫", "🐈"):
    print(f"{text}  {list(text.encode())}")

# %% [markdown]
# So there is a vocabulary of 256 ids that can write every text ever written, and nothing can be
# unknown to it. Why not stop here? Because a model reads a fixed number of ids at a time, and its
# work grows with their number. With bytes, "the" costs three steps, though no reader spells it.
#
# The other extreme is an id for every word. Then "cats" has nothing to do with "cat", a typing
# error is unknown, and the table of words never ends. What we want lies between: frequent things
# whole, rare things spelt.
#
# ## The idea
#
# Byte-pair encoding finds that middle by itself (Sennrich et al. 2016, arXiv:1508.07909). Begin
# with the bytes. Find the pair of neighbours that occurs most often, and give it an id of its own.
# Write that id wherever the pair stands. Repeat.
#
# On the text `aaabdaaabac`, with letters for ids:
#
# | step | most frequent pair | becomes | text |
# | --- | --- | --- | --- |
# | 0 | | | `aaabdaaabac` |
# | 1 | `aa` | `Z` | `ZabdZabac` |
# | 2 | `ab` | `Y` | `ZYdZYac` |
# | 3 | `ZY` | `X` | `XdXac` |
#
# Eleven ids have become five, and `X` stands for `aaab`. In the first step, see how `aaa` became
# `Za`: from the left, and an `a` that is used up cannot be used again.
#
# **Exercise 1.1.** Count the pairs of neighbours, and return the one that occurs most often. Of
# pairs that are equally frequent take the one with the lower ids, the left id before the right:
# then the result depends on nothing but the counts.

# %% exercise="1.1"
def most_frequent_pair(ids):
    """ids, a list of two or more -> (left, right)."""
    # solution
    counts = Counter(pairwise(ids))
    return min(counts, key=lambda pair: (-counts[pair], pair))

# %%
check(most_frequent_pair)

# %% [markdown]
# **Exercise 1.2.** Replace the pair by a new id, from the left.

# %% exercise="1.2"
def merge(ids, pair, new):
    """ids, a list; pair (left, right); new, an id -> ids, `new` in the place of each pair."""
    # solution
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged

# %%
check(merge)

# %% [markdown]
# **Exercise 1.3.** Train: find and merge as often as is asked. The first new id is 256, as the
# bytes have those below. The dictionary that you return, from a pair to its id, *is* the trained
# tokenizer. There is nothing else to it.

# %% exercise="1.3"
def train(ids, merges):
    """ids, bytes as a list; merges, how many -> {(left, right): new id}, the first one first."""
    # solution
    table = {}
    for new in range(256, 256 + merges):
        pair = most_frequent_pair(ids)
        ids = merge(ids, pair, new)
        table[pair] = new
    return table

# %%
check(train)

# %% [markdown]
# Try it on a real text: what Python's `help()` says of itself, which is on every machine that has
# Python.

# %%
from pydoc_data.topics import topics

text = "\n".join(topics.values())
sample = text[:50_000]
began = time.perf_counter()
table = train(list(sample.encode()), 60)
print(f"60 merges of {len(sample):,} characters took {time.perf_counter() - began:.1f} s")


def spelt(table):
    """What each id stands for, as bytes."""
    meaning = {byte: bytes([byte]) for byte in range(256)}
    for (left, right), new in table.items():
        meaning[new] = meaning[left] + meaning[right]
    return meaning


print([spelt(table)[new].decode() for new in table.values()])

# %% [markdown]
# First come pieces of words, then words. Nobody told it what a word is.
#
# ## Text to ids
#
# To encode a new text, do the merges **in the order in which training found them**. The order
# matters: an id can only be found where the two ids that it is made of are there, and those were
# found before it. So: of all pairs in the text, take the one with the lowest new id, merge it, and
# repeat until no pair is in the table.

# %% [markdown]
# **Exercise 1.4.** Write `encode`.

# %% exercise="1.4"
def encode(ids, table):
    """ids, bytes as a list; table {(left, right): new id} -> a list of ids."""
    # solution
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: table.get(pair, float("inf")))
        if pair not in table:
            break
        ids = merge(ids, pair, table[pair])
    return ids

# %%
check(encode)

# %% [markdown]
# And back: put the bytes of all ids one after another, and read them as UTF-8. The next exercise
# has been written already, and it is wrong. **Find the fault.** It passes every test in English,
# and has been shipped more than once.
#
# **Exercise 1.5.** Mend `decode`.

# %% exercise="1.5"
def decode(ids, table):
    """ids, a list -> the text."""
    #: meaning = spelt(table)
    #: return "".join(meaning[id].decode("utf-8", errors="replace") for id in ids)
    # solution
    meaning = spelt(table)
    return b"".join(meaning[id] for id in ids).decode("utf-8", errors="replace")

# %%
check(decode)

# %% [markdown]
# Whatever you put in comes out again, in any language, after training on English alone:

# %%
for word in ("interesting", "the interpreter", "naïve", "猫 🐈"):
    ids = encode(list(word.encode()), table)
    print(
        f"{word!r}: {len(word.encode())} bytes, {len(ids)} ids, back again: {decode(ids, table)!r}"
    )

# %% [markdown]
# ## Fast enough for a book
#
# What you have is right, and slow: each merge walks through the whole text. Two ideas make it fast
# without changing what it computes.
#
# **Cut first.** A merge across the space between two words would make ids like `of the`, which fill
# the vocabulary with phrases. So the text is cut into pieces first, by a regular expression, and no
# merge goes across a cut. Most pieces are words with the space before them. Then only *distinct*
# pieces matter, each with its count: some thousands in place of a million characters.
#
# **Count once.** A merge changes only the pieces that contain the pair, so the counts can be kept
# up to date rather than made again.
#
# That is what `numgpt/tokenizer/train.py` does. First the cut:

# %%
from numgpt.tokenizer.pattern import Pattern

print(Pattern("gpt2").split("It's 3 o'clock; the cat's asleep."))

# %%
began = time.perf_counter()
tokenizer = numgpt.Tokenizer.train(text, 256 + 1000)
print(f"1000 merges of {len(text):,} characters took {time.perf_counter() - began:.1f} s")
print([tokenizer.decode([id]) for id in range(256, 1256, 40)])

# %% [markdown]
# The same algorithm, so it must give the same merges. GPT-2 numbers the bytes in an order of its
# own (those that print come first), so give your functions the bytes under its numbers, and count
# pairs within pieces:

# %%
words = "the cat sat on the mat, the cat ate the rat, and then the bat sat on the cat " * 5
fast = numgpt.Tokenizer.train(words, 256 + 20, special_tokens=())
number = {fast.token_to_bytes(id): id for id in range(256)}
parts = [
    [number[bytes([byte])] for byte in piece.encode()] for piece in Pattern("gpt2").split(words)
]
own = []
for new in range(256, 276):
    counts = Counter(pair for ids in parts for pair in pairwise(ids))
    pair = min(counts, key=lambda pair: (-counts[pair], pair))
    parts = [merge(ids, pair, new) for ids in parts]
    own.append(b"".join(fast.token_to_bytes(id) for id in pair))
same = own == [fast.token_to_bytes(id) for id in range(256, 276)]
print(f"20 merges, the same ones in the same order: {same}")

# %% [markdown]
# ## What a vocabulary costs and gives
#
# More ids mean shorter texts, up to a point: each new id stands for something rarer than the one
# before. And each id costs a row of numbers in the model, at both of its ends.

# %%
sizes = [260, 300, 400, 600, 1000, 1500, 2500, 4000]
held_out = text[-100_000:]
lengths = []
for size in sizes:
    trained = numgpt.Tokenizer.train(text[:-100_000], size)
    lengths.append(len(held_out.encode()) / len(trained.encode(held_out)))
_, axis = figure()
axis.plot(sizes, lengths, marker="o")
axis.set_xlabel("size of the vocabulary")
axis.set_ylabel("bytes an id")
axis.set_title("Text that was not trained on");

# %% [markdown]
# ## What follows from it
#
# A model never sees letters. Here is what the tokenizer that ships with numgpt, trained on
# Shakespeare, makes of a few words:

# %%
_, shakespeare = numgpt.load("shakespeare")
for word in ("thou", " thou", "strawberry", " Romeo", "1597"):
    pieces = [shakespeare.decode([id]) for id in shakespeare.encode(word)]
    print(f"{word!r:13} {pieces}")

# %% [markdown]
# - "How many r are in *strawberry*?" is hard for a model as it sees a few ids, none of which is r.
#   It has to have learnt the spelling of each id by heart.
# - `thou` and ` thou` are different ids, with different rows in the model.
# - Numbers are cut wherever the training text happened to have them, so arithmetic on digits is
#   harder than it looks. Newer tokenizers cut digits apart first.
# - A language that the training text lacked costs more ids a word, so it is dearer and slower, and
#   less of it fits.
#
# **Where this is in numgpt:** `tokenizer/pattern.py` cuts, `tokenizer/merge.py` merges one piece
# (with a heap where the piece is long), `tokenizer/train.py` learns.
#
# Next: what a model does with ids begins with one neuron.
