"""Sentences: some written down to be compared with each other, and made-up ones in any number."""

from __future__ import annotations

import numpy as np

STORED = (
    "The cat sleeps on the warm window sill.",
    "Our puppy chewed up a pair of shoes.",
    "The central bank raised interest rates again.",
    "Shares fell sharply after the announcement.",
    "Boil the pasta for nine minutes and drain it.",
    "Add a pinch of salt and stir the soup.",
    "The telescope found a planet around a distant star.",
    "Astronauts repaired the solar panel of the station.",
    "The team won the final after extra time.",
    "She ran the marathon in under three hours.",
    "Restart the server and check the log for errors.",
    "The program crashes when the file is empty.",
    "Heavy rain flooded the streets of the old town.",
    "Tomorrow will be sunny with a light breeze.",
    "Take one tablet after each meal.",
    "The surgeon said the operation went well.",
)
QUESTIONS = (
    "A kitten is napping in the sun.",
    "Borrowing money becomes more expensive.",
    "How long do I cook noodles?",
    "Scientists discovered a world outside our solar system.",
    "Who scored in overtime?",
    "My application stops with an exception.",
    "Will it be nice weather?",
    "When should I swallow the pills?",
)
WHO = (
    "the teacher", "my neighbour", "a young doctor", "the old captain", "nobody", "our team", "the committee",
    "her brother", "a group of students", "the new manager", "an engineer from Spain", "the company",
    "the goalkeeper", "a tired nurse", "the kitten", "the minister of finance", "the mission control",
)  # fmt: skip
DOES = (
    "buy", "forget", "describe", "repair", "lose", "measure", "sell", "paint", "look for", "write about",
    "replace", "understand", "complain about", "admire", "clean", "throw away", "pay for", "watch",
)  # fmt: skip
WHAT = (
    "the red bicycle", "a broken telephone", "the results of the election", "two tickets to the theatre",
    "the recipe for apple cake", "an ancient map", "the database of customers", "a medicine against fever",
    "the interest on the loan", "the last train to the coast", "three violins", "the leaking pipe",
    "a paper on black holes", "the contract", "fresh bread and olives", "the rocket on its pad", "a parrot",
    "the final score", "the clouds over the lake", "a virus in the network", "rising prices", "warm socks",
)  # fmt: skip
WHEN = (
    "", "yesterday", "before the storm", "in spring", "during the long meeting", "because it is cheap",
    "although everybody warned against it", "on the way to the airport", "at night", "after dinner",
)  # fmt: skip
FORMS = (
    "{who} will {does} {what} {when}.", "Why does {who} {does} {what}?", "Please {does} {what} {when}.",
    "How many people {does} {what} {when}?", "{when}, {who} had to {does} {what}.", "He can {does} {what}.",
    "I cannot {does} {what}, but {who} can.", "{what}!", "{who} and {what}",
)  # fmt: skip


def made_up(n: int, seed: int) -> list[str]:
    """`n` sentences; which, depends on the seed only. Not all make sense."""
    rng = np.random.default_rng(seed)

    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    def sentence() -> str:
        filled = one(FORMS).format(who=one(WHO), does=one(DOES), what=one(WHAT), when=one(WHEN))
        tidy = filled.replace(" .", ".").replace(" ?", "?").lstrip(", ")
        return tidy[0].upper() + tidy[1:]

    return [sentence() for _ in range(n)]
