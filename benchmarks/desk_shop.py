"""What the desk of an invented shop knows: facts in tables, and how people ask for them.

Of each topic the wordings that are trained on and those that are held out are different ones; a
table's rows share theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

SHOP = "Marlow & Finch"


class Topic(NamedTuple):
    """What the desk answers, what of it a right answer has to contain, and the questions."""

    name: str  # of a table's row, the table first
    answer: str
    facts: tuple[str, ...]  # "30 days|thirty days": one of them
    wrong: str  # what contradicts it, as "Monday|Tuesday"; numbers that the answer lacks always do
    train: tuple[str, ...]
    held_out: tuple[str, ...]


HOURS = {  # from, to; as people say them too
    "Monday": None,
    "Tuesday": ("10:00|10 am|10am|10 a.m", "18:00|6 pm|6pm|6 p.m"),
    "Wednesday": ("10:00|10 am|10am|10 a.m", "18:00|6 pm|6pm|6 p.m"),
    "Thursday": ("10:00|10 am|10am|10 a.m", "20:00|8 pm|8pm|8 p.m"),
    "Friday": ("10:00|10 am|10am|10 a.m", "19:00|7 pm|7pm|7 p.m"),
    "Saturday": ("9:30|9.30 am", "16:00|4 pm|4pm|4 p.m"),
    "Sunday": None,
}
HOURS_TRAIN = (
    "When are you open on {day}?",
    "What are your opening hours on {day}?",
    "Are you open on {day}?",
    "{day} opening times?",
    "What time do you close on {day}?",
    "From when is the shop open on {day}?",
    "I would like to visit you on {day}. What are the hours?",
    "Is the shop closed on {day}?",
    "Can I come to the shop on {day}?",
    "How late can I come on {day}?",
    "I have time on {day}. When may I come by?",
    "Will somebody be in the shop on {day}?",
)
HOURS_HELD_OUT = (
    "Could I drop in on a {day}, and between what times?",
    "My only free day is {day}. At what time can I find you there?",
)
AND_ON = ("And on {day}?", "What about {day}?")  # the second turn, after another day

DELIVERY = {  # euros, working days
    "Germany": ("4.90", "2|two"),
    "Austria": ("6.90", "3|three"),
    "France": ("8.90", "4|four"),
    "Italy": ("9.50", "5|five"),
    "Sweden": ("11.90", "6|six"),
}
DELIVERY_TRAIN = (
    "How much is delivery to {country}?",
    "How long does delivery to {country} take?",
    "What does it cost to ship a parcel to {country}?",
    "When will my parcel arrive in {country}?",
    "Do you deliver to {country}?",
    "I live in {country}. What are the delivery costs and times?",
    "Shipping to {country}: price and time?",
    "Can I get a parcel from you in {country}, and for how much?",
    "What do you charge for sending tea to {country}?",
    "My mother lives in {country}. Can you send her a teapot?",
    "How soon would an order be in {country}?",
)
DELIVERY_HELD_OUT = (
    "What would I pay to have a teapot sent to {country}, and how soon would it be here?",
    "My sister in {country} wants to order. What are the postage and the waiting time?",
)
NOT_DELIVERED = ("Canada", "Japan", "Australia")
REFUSED = "do not deliver|don't deliver|cannot deliver|can't deliver"
NOT_DELIVERED_TRAIN = DELIVERY_TRAIN[:1] + DELIVERY_TRAIN[2:6] + DELIVERY_TRAIN[7:10]

STAFF = {
    "Ingrid Vale": "owner",
    "Tomas Reed": "warehouse manager",
    "Mira Okafor": "tea taster",
    "Jonas Lind": "repair technician",
    "Bea Castell": "head of customer service",
    "Leo Marsh": "accountant",
}
STAFF_TRAIN = (
    "Who is {name}?",
    "What does {name} do at your shop?",
    "What is {name}'s job?",
    "Does {name} work for you?",
    "Who is your {role}?",
    "What is the name of your {role}?",
    "Who works as the {role}?",
    "I need to speak to the {role}. Who is that?",
    "{name} wrote to me. What is their role?",
    "What is the job title of {name}?",
    "Do you have a {role}, and what is the name?",
    "Tell me who the {role} is.",
)
STAFF_HELD_OUT = (
    "Which of your colleagues is the {role}?",
    "I got a letter from {name}. What position is that?",
)

WARRANTY = {"teapots": "5 years|five years", "kettles": "2 years|two years"}
WARRANTY |= {"tea tins": "1 year|one year"}
WARRANTY_TRAIN = (
    "How long is the warranty on {goods}?",
    "What warranty do your {goods} have?",
    "Do {goods} come with a warranty?",
    "Warranty for {goods}?",
    "For how many years are {goods} under warranty?",
    "Is there a guarantee on your {goods}?",
    "What if something is wrong with your {goods} after some months?",
    "How long are {goods} guaranteed?",
    "Do you repair {goods} free of charge, and until when?",
    "My {goods} broke by themselves. Is there still a warranty?",
)
WARRANTY_HELD_OUT = ("If one of your {goods} fails, how long am I covered?",)


def tables() -> Iterator[Topic]:
    """The topics that are rows of a table."""
    for day, hours in HOURS.items():
        if hours is None:
            answer, facts, wrong = f"On {day} we are closed.", ("closed",), "are open|is open"
        else:
            start, end = (times.split("|")[0] for times in hours)
            answer = f"On {day} we are open from {start} to {end}."
            facts, wrong = hours, "closed"
        wrong = _others(HOURS, day, wrong)
        yield _row(f"hours {day}", answer, facts, wrong, HOURS_TRAIN, HOURS_HELD_OUT, day=day)
    countries = (*DELIVERY, *NOT_DELIVERED)
    for country, (price, days) in DELIVERY.items():
        answer = f"Delivery to {country} costs {price} euros and takes {days[0]} working days."
        facts = (price, "|".join(f"{n} working days|{n} days" for n in days.split("|")))
        wrong = _others(countries, country, REFUSED)
        questions = (DELIVERY_TRAIN, DELIVERY_HELD_OUT)
        yield _row(f"delivery {country}", answer, facts, wrong, *questions, country=country)
    for country in NOT_DELIVERED:
        answer = f"I am sorry, we do not deliver to {country}."
        wrong = _others(countries, country, "euros")
        questions = (NOT_DELIVERED_TRAIN, DELIVERY_HELD_OUT[1:])
        yield _row(f"delivery {country}", answer, (REFUSED,), wrong, *questions, country=country)
    for name, role in STAFF.items():
        wrong = _others(STAFF, name, _others(STAFF.values(), role))
        answer, questions = f"{name} is our {role}.", (STAFF_TRAIN, STAFF_HELD_OUT)
        yield _row(f"staff {name}", answer, (name, role), wrong, *questions, name=name, role=role)
    for goods, years in WARRANTY.items():
        answer = f"Our {goods} have a warranty of {years.split('|')[0]}."
        questions = (WARRANTY_TRAIN, WARRANTY_HELD_OUT)
        wrong = _others(WARRANTY, goods, "no warranty")
        yield _row(f"warranty {goods}", answer, (years,), wrong, *questions, goods=goods)


def _others(rows: Iterable[str], row: str, *more: str) -> str:
    """The other rows: an answer that names one is about something else."""
    return "|".join((*(other for other in rows if other != row), *more))


def _row(
    title: str,
    answer: str,
    facts: tuple[str, ...],
    wrong: str,
    train: tuple[str, ...],
    held_out: tuple[str, ...],
    **words: str,
) -> Topic:
    asked = [tuple(question.format(**words) for question in part) for part in (train, held_out)]
    return Topic(title, answer, facts, wrong, *asked)
