"""People in generated problems."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.data.draw import Draw


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words(
    "Ada Aisha Alma Amara Anika Ava Beatriz Bella Brooke Camila Carmen Chloe Clara Daisy Dalia Diana Elena Elif "
    "Ella Emma Esme Fatima Flora Freya Gemma Grace Greta Hana Hazel Helen Ida Imani Ines Iris Ivy Jade Jasmine "
    "Julia June Kaori Kate Keira Lara Leah Leila Lena Lily Lucia Luna Mabel Maeve Malia Margot Maria Maya Mei "
    "Mila Mina Molly Nadia Naomi Nina Nora Olga Olive Paige Petra Pia Priya Rana Rhea Rosa Ruby Sadie Salma "
    "Sana Sara Selma Sofia Stella Talia Tara Tessa Tilda Uma Vera Willa Yara Yuki Zadie Zara Zoe"
)
MEN = _words(
    "Adam Adrian Ahmed Alan Amir Andre Anton Arjun Asher Axel Ben Boris Bruno Caleb Carlos Cyrus Dan Dario "
    "David Dev Diego Dylan Eli Emil Enzo Erik Ethan Ezra Felix Finn Gabe Gavin Hamid Hans Hugo Ian Igor Isaac "
    "Ivan Jack Jamal James Javier Joel Jonas Jorge Kai Karim Kenji Kofi Kyle Leo Levi Liam Louis Luca Lukas "
    "Malik Marco Mario Mark Mateo Max Milo Musa Nate Nico Noah Oliver Omar Oscar Otto Owen Pablo Paul Pedro "
    "Peter Quinn Rafael Ravi Remy Rico Rohan Ryan Sami Samuel Sean Simon Sven Tariq Theo Tim Tomas Umar Victor "
    "Wei Will Yusuf Zane"
)

KIN = ("cousin", "neighbor", "classmate", "teammate", "best friend")
WOMEN_OF_KIN = ("sister", "mother", "aunt", "grandmother")
MEN_OF_KIN = ("brother", "father", "uncle", "grandfather")
CROWDS = ("friends", "cousins", "classmates", "neighbors", "teammates")


@dataclass(frozen=True)
class Person:
    """Somebody with a name. In sentences `@who`, `@his` and `@him` stand for a person; see `story.py`."""

    name: str
    woman: bool

    @property
    def pronouns(self) -> dict[str, str]:
        """What the three marks become where it is clear who is meant."""
        words = ("she", "her", "her") if self.woman else ("he", "his", "him")
        return dict(zip(("@who", "@his", "@him"), words, strict=True))

    @property
    def named(self) -> dict[str, str]:
        """What the three marks become where it is not."""
        own = f"{self.name}'" if self.name.endswith("s") else f"{self.name}'s"
        return {"@who": self.name, "@his": own, "@him": self.name}


PEOPLE = tuple(Person(name, names is WOMEN) for names in (WOMEN, MEN) for name in names)


def people(draw: Draw, count: int) -> list[Person]:
    """`count` people, none twice."""
    return draw.some(PEOPLE, count)


def kin(draw: Draw, person: Person) -> str:
    """Somebody without a name whom no later "he" or "she" can mean: a sister for a man, a brother for a woman."""
    others = MEN_OF_KIN if person.woman else WOMEN_OF_KIN
    return "a friend" if draw.chance(0.2) else f"@his {draw.pick((*KIN, *others))}"


def crowd(draw: Draw) -> str:
    """Several people without names."""
    return draw.pick(CROWDS)
