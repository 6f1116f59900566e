"""What generated problems are about: things that somebody has, and what happens to them; places, and who is there.

Tables only. Verbs are written "past|base|tail"; `@his` in a tail is the person who acts, `@kin` somebody
without a name. How they are put together is the business of `scenes_*.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """A word for something, in both numbers."""

    one: str
    many: str

    def of(self, count: object) -> str:
        """The word that goes with a count."""
        return self.one if count == 1 else self.many


@dataclass(frozen=True)
class Verb:
    """What somebody did: "gave", "give", "to @kin"."""

    past: str
    base: str
    tail: str = ""

    @property
    def third(self) -> str:
        """What somebody does: "gives"."""
        first, space, rest = self.base.partition(" ")
        return f"{first}s{space}{rest}"


@dataclass(frozen=True)
class Kit:
    """Things of one sort, and what people do with them.

    makes: how they come about, a few at a time. uses: how they go, a few a day. sorts: what tells some of
    them from others. boxes: what they are kept in. price: dollars for one, from and to.
    """

    things: tuple[Thing, ...]
    gains: tuple[Verb, ...]
    losses: tuple[Verb, ...]
    makes: tuple[Verb, ...]
    uses: tuple[Verb, ...]
    sorts: tuple[tuple[str, str], ...]
    boxes: tuple[Thing, ...]
    price: tuple[int, int]


def thing(word: str) -> Thing:
    """A thing from "apple", "box+es" or "knife/knives"."""
    one, slash, many = word.partition("/")
    if slash:
        return Thing(one, many)
    stem, plus, ending = word.partition("+")
    return Thing(stem, stem + (ending if plus else "s"))


def things(words: str) -> tuple[Thing, ...]:
    """Things from words parted by commas."""
    return tuple(thing(word.strip()) for word in words.split(","))


def verbs(text: str) -> tuple[Verb, ...]:
    """Verbs from "past|base|tail", parted by semicolons."""
    return tuple(Verb(*(part.strip() for part in each.split("|"))) for each in text.split(";"))


def _sorts(text: str) -> tuple[tuple[str, str], ...]:
    first = (pair.split("/") for pair in text.split(", "))
    return tuple((one, other) for one, other in first)


COLOURS = "red/blue, green/yellow, white/purple, black/orange, blue/silver, pink/brown"

KITS: tuple[Kit, ...] = (
    Kit(
        things(
            "stamp, marble, sticker, coin, trading card, seashell, button, postcard, badge, comic book, toy car, "
            "key ring, bead, model plane, magnet, puzzle piece, action figure, pebble, ribbon, doll"
        ),
        verbs(
            "bought|buy|at a yard sale; found|find|in the attic; got|get|from @kin; won|win|at the fair; "
            "bought|buy|online; received|receive|as a gift; found|find|under the bed; got|get|for @his birthday"
        ),
        verbs(
            "gave|give|to @kin; lost|lose|at the park; sold|sell|at a flea market; donated|donate|to a school; "
            "mailed|mail|to @kin; lost|lose|on the bus; traded away|trade away|; broke|break|by accident"
        ),
        verbs("collected|collect; bought|buy; found|find"),
        verbs("gave away|give away; sold|sell"),
        _sorts(f"{COLOURS}, old/new, large/small, shiny/plain"),
        things("box+es, bag, jar, drawer, tin, pouch+es, chest"),
        (1, 6),
    ),
    Kit(
        things("cookie, muffin, cupcake, brownie, bread roll, pie, pretzel, bagel, scone, doughnut, tart, biscuit"),
        verbs(
            "baked|bake|in the afternoon; made|make|for the guests; bought|buy|at the bakery; got|get|from @kin; "
            "baked|bake|after lunch; baked|bake|with @kin"
        ),
        verbs(
            "ate|eat|for lunch; gave|give|to @kin; sold|sell|at a bake sale; burned|burn|by accident; "
            "served|serve|to the guests; packed|pack|for a picnic; dropped|drop|on the floor; took|take|to school"
        ),
        verbs("baked|bake; made|make"),
        verbs("ate|eat; sold|sell; served|serve"),
        _sorts("sweet/salty, plain/filled, large/small, warm/cold, glazed/plain"),
        things("box+es, tin, bag, basket, container"),
        (1, 5),
    ),
    Kit(
        things("sandwich+es, dumpling, meatball, taco, spring roll, pancake, waffle, hot dog, rice ball, fish cake"),
        verbs(
            "made|make|for the party; cooked|cook|in the evening; bought|buy|at a food stand; got|get|from @kin; "
            "prepared|prepare|with @kin"
        ),
        verbs(
            "ate|eat|for dinner; gave|give|to @kin; sold|sell|at the fair; served|serve|to the guests; "
            "shared|share|with @kin; dropped|drop|on the floor"
        ),
        verbs("made|make; prepared|prepare; cooked|cook"),
        verbs("ate|eat; sold|sell; served|serve"),
        _sorts("spicy/mild, large/small, warm/cold, vegan/regular"),
        things("box+es, basket, container, lunch box+es, bowl"),
        (2, 7),
    ),
    Kit(
        things(
            "apple, pear, orange, lemon, plum, peach+es, tomato+es, carrot, potato+es, onion, pumpkin, banana, "
            "strawberry/strawberries, cucumber, pepper, radish+es, fig, mango+es, melon, cabbage"
        ),
        verbs(
            "picked|pick|in the garden; bought|buy|at the market; got|get|from @kin; harvested|harvest|in the evening; "
            "bought|buy|at the grocery store; picked|pick|before noon"
        ),
        verbs(
            "gave|give|to @kin; threw away|throw away|; sold|sell|at the market; ate|eat|during the week; "
            "cooked|cook|for dinner; dropped|drop|on the way home; used|use|for a salad; fed|feed|to the animals"
        ),
        verbs("picked|pick; harvested|harvest; bought|buy"),
        verbs("ate|eat; used|use; sold|sell"),
        _sorts("ripe/unripe, large/small, red/green, fresh/bruised, sweet/sour"),
        things("basket, bag, crate, box+es, bowl, sack, bucket"),
        (1, 4),
    ),
    Kit(
        things(
            "pencil, crayon, eraser, notebook, pen, marker, folder, ruler, paper clip, index card, envelope, "
            "paintbrush+es, glue stick, sheet of paper/sheets of paper, binder, chalk stick"
        ),
        verbs(
            "bought|buy|at the store; got|get|from @kin; found|find|in a drawer; ordered|order|for the class; "
            "received|receive|from the teacher; bought|buy|on sale"
        ),
        verbs(
            "lent|lend|to @kin; lost|lose|at school; used up|use up|; gave|give|to @kin; threw away|throw away|; "
            "handed out|hand out|in class; left|leave|on the bus"
        ),
        verbs("bought|buy; collected|collect; found|find"),
        verbs("used|use; handed out|hand out"),
        _sorts(f"{COLOURS}, new/used, long/short, thick/thin"),
        things("box+es, pack, case, drawer, bag, cup"),
        (1, 5),
    ),
    Kit(
        things(
            "tulip, rose, daisy/daisies, sunflower, lily/lilies, orchid, carnation, violet, poppy/poppies, marigold, "
            "daffodil, peony/peonies"
        ),
        verbs(
            "picked|pick|in the meadow; bought|buy|at the flower shop; got|get|from @kin; cut|cut|in the garden; "
            "ordered|order|for the party; grew|grow|in the greenhouse"
        ),
        verbs(
            "gave|give|to @kin; sold|sell|at the market; threw away|throw away|; used|use|for a wreath; "
            "put|put|on the table; took|take|to a friend's house"
        ),
        verbs("picked|pick; planted|plant; cut|cut"),
        verbs("sold|sell; gave away|give away; used|use"),
        _sorts("red/yellow, white/pink, purple/orange, tall/short, open/closed"),
        things("vase, bunch+es, pot, bucket, bouquet"),
        (1, 6),
    ),
    Kit(
        things(
            "candle, bracelet, necklace, scarf/scarves, paper crane, paper flower, birdhouse, poster, clay pot, "
            "greeting card, painting, mitten, lantern, kite, puppet, mask, wooden spoon, bookmark"
        ),
        verbs(
            "made|make|over the weekend; bought|buy|at a craft fair; got|get|from @kin; finished|finish|on Sunday; "
            "made|make|with @kin"
        ),
        verbs(
            "gave|give|to @kin; sold|sell|at a craft fair; donated|donate|to a charity; sold|sell|online; "
            "sent|send|to @kin; sold|sell|to a shop"
        ),
        verbs("made|make; finished|finish; painted|paint"),
        verbs("sold|sell; gave away|give away"),
        _sorts(f"{COLOURS}, large/small, finished/unpainted"),
        things("box+es, basket, bag, crate"),
        (3, 20),
    ),
    Kit(
        things(
            "gumdrop, lollipop, chocolate, mint, jelly bean, caramel, piece of candy/pieces of candy, gummy bear, "
            "licorice stick, toffee, sugar cube"
        ),
        verbs(
            "got|get|from @kin; bought|buy|at the corner shop; won|win|in a contest; found|find|in @his pocket; "
            "received|receive|at a party; bought|buy|on the way home"
        ),
        verbs(
            "ate|eat|after dinner; gave|give|to @kin; dropped|drop|in the mud; shared|share|with @kin; "
            "ate|eat|during the movie; handed out|hand out|at school"
        ),
        verbs("bought|buy; collected|collect; received|receive"),
        verbs("ate|eat; gave away|give away"),
        _sorts("red/green, yellow/orange, large/small, wrapped/unwrapped, round/square"),
        things("bag, jar, box+es, bowl, pack, tin"),
        (1, 3),
    ),
    Kit(
        things("photo, song, file, video, app, email, podcast, drawing, map, recipe"),
        verbs(
            "saved|save|on @his phone; got|get|from @kin; added|add|in the evening; downloaded|download|last night; "
            "copied|copy|from an old computer"
        ),
        verbs(
            "deleted|delete|to save space; removed|remove|by mistake; moved|move|to an old computer; "
            "deleted|delete|in the morning; sent off|send off|to @kin"
        ),
        verbs("saved|save; downloaded|download; added|add"),
        verbs("deleted|delete"),
        _sorts("old/new, long/short, public/private"),
        things("folder, group, set"),
        (1, 3),
    ),
    Kit(
        things(
            "book, magazine, newspaper, story book, cookbook, dictionary/dictionaries, puzzle book, atlas+es, "
            "board game, record, novel"
        ),
        verbs(
            "bought|buy|at a book fair; borrowed|borrow|from @kin; got|get|for @his birthday; "
            "ordered|order|online; found|find|in the basement"
        ),
        verbs(
            "lent|lend|to @kin; returned|return|on Friday; donated|donate|to the library; sold|sell|at a yard sale; "
            "gave|give|to @kin; lost|lose|during the move"
        ),
        verbs("bought|buy; borrowed|borrow; collected|collect"),
        verbs("sold|sell; lent out|lend out"),
        _sorts("old/new, large/small, cheap/expensive"),
        things("box+es, stack, crate, bag"),
        (4, 20),
    ),
    Kit(
        things("balloon, paper plate, napkin, party hat, cup, fork, spoon, straw, paper flag, streamer, whistle"),
        verbs(
            "bought|buy|at the party store; got|get|from @kin; found|find|in the kitchen; ordered|order|online; "
            "borrowed|borrow|from @kin; brought|bring|from home"
        ),
        verbs(
            "used|use|for a party; gave|give|to @kin; lost|lose|in the yard; threw away|throw away|; "
            "lent|lend|to @kin; returned|return|to the store"
        ),
        verbs("bought|buy; ordered|order; packed|pack"),
        verbs("used|use; sold|sell"),
        _sorts(f"{COLOURS}, large/small, new/old"),
        things("box+es, bag, pack, drawer"),
        (1, 4),
    ),
    Kit(
        things("battery/batteries, light bulb, nail, screw, brick, tile, hook, wooden board, pipe, hinge, rope, bolt"),
        verbs(
            "bought|buy|at the hardware store; got|get|from @kin; found|find|in the garage; ordered|order|online; "
            "borrowed|borrow|from @kin; bought|buy|for the repairs"
        ),
        verbs(
            "used|use|for a shed; gave|give|to @kin; lost|lose|in the yard; threw away|throw away|; "
            "lent|lend|to @kin; returned|return|to the store; used up|use up|"
        ),
        verbs("bought|buy; ordered|order; collected|collect"),
        verbs("used|use; sold|sell"),
        _sorts("large/small, new/old, long/short, heavy/light"),
        things("box+es, bag, pack, drawer, crate, bundle"),
        (1, 6),
    ),
)


@dataclass(frozen=True)
class Place:
    """Where things or people come and go. `comes` and `goes` follow their names: "got on at the station".

    sorts: two sorts that may be there, and the word for both together.
    """

    where: str
    who: tuple[Thing, ...]
    sorts: tuple[Thing, ...]
    comes: tuple[str, ...]
    goes: tuple[str, ...]
    groups: tuple[Thing, ...] = ()
    seats: Thing | None = None


def _lines(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";"))


PLACES: tuple[Place, ...] = (
    Place(
        "on the bus",
        things("passenger, person/people, student, tourist"),
        things("adult, child/children, person/people"),
        _lines("got on at the next stop; got on at the school; climbed aboard at the station"),
        _lines("got off at the museum; got off at the next stop; got off at the market"),
        seats=Thing("seat", "seats"),
    ),
    Place(
        "on the train",
        things("passenger, traveler, commuter"),
        things("man/men, woman/women, person/people"),
        _lines("boarded at the second station; got on in the next town; boarded at noon"),
        _lines("got off at the airport; got off in the next town; left at the last station"),
        things("car, compartment"),
        Thing("seat", "seats"),
    ),
    Place(
        "in the parking lot",
        things("car, van, truck, motorcycle, bicycle"),
        things("car, truck, vehicle"),
        _lines("drove in before lunch; arrived in the next hour; parked there after work"),
        _lines("drove away at noon; left in the evening; drove off after the game"),
        things("row"),
        Thing("space", "spaces"),
    ),
    Place(
        "at the pond",
        things("duck, swan, frog, goose/geese, turtle, heron"),
        things("duck, swan, bird"),
        _lines("came from the river; joined them at sunrise; arrived from the lake"),
        _lines("left for the river; disappeared into the reeds; went away before dark"),
    ),
    Place(
        "on the farm",
        things("sheep/sheep, cow, goat, hen, horse, pig, llama"),
        things("cow, goat, animal"),
        _lines("were bought in spring; were born in May; were brought from another farm"),
        _lines("were sold in fall; were given to a neighbor; were moved to another farm"),
        things("pen, barn, stable"),
    ),
    Place(
        "in the library",
        things("visitor, reader, student, child/children"),
        things("teacher, student, person/people"),
        _lines("came in after school; arrived at noon; entered in the next hour"),
        _lines("went home for dinner; left before closing time; walked out at noon"),
        things("room, section"),
        Thing("chair", "chairs"),
    ),
    Place(
        "in the tree",
        things("bird, sparrow, crow, squirrel, robin, parrot"),
        things("sparrow, robin, bird"),
        _lines("joined them a minute later; came from the next tree; arrived in the afternoon"),
        _lines("left when a dog barked; moved to the roof; disappeared in the afternoon"),
    ),
    Place(
        "in the theater",
        things("guest, spectator, child/children, adult"),
        things("adult, child/children, person/people"),
        _lines("came in after the first scene; arrived late; walked in during the break"),
        _lines("left during the break; went home early; walked out before the end"),
        things("row"),
        Thing("seat", "seats"),
    ),
    Place(
        "at the harbor",
        things("boat, ship, sailboat, ferry/ferries, kayak"),
        things("sailboat, ferry/ferries, boat"),
        _lines("came in with the tide; arrived before the storm; returned from a race"),
        _lines("sailed away at dawn; left for the island; went out to sea"),
        things("dock, pier"),
    ),
    Place(
        "at the playground",
        things("child/children, boy, girl, kid"),
        things("boy, girl, child/children"),
        _lines("came after school; joined the game; arrived with a teacher"),
        _lines("went home for dinner; left when it rained; went inside"),
    ),
    Place(
        "in the warehouse",
        things("box+es, crate, barrel, package, bicycle, chair"),
        things("crate, barrel, item"),
        _lines("were delivered on Monday; arrived by truck; were brought in at noon"),
        _lines("were shipped to a store; were sent out by truck; were sold on Tuesday"),
        things("row, room, section"),
    ),
    Place(
        "in the aquarium",
        things("fish/fish, guppy/guppies, snail, crab, shrimp/shrimp, sea star"),
        things("snail, crab, animal"),
        _lines("were added on Sunday; were bought at a pet shop; hatched in June"),
        _lines("were moved to another tank; were given away; were sold to a collector"),
        things("tank"),
    ),
    Place(
        "in the hotel",
        things("guest, tourist, visitor"),
        things("man/men, woman/women, person/people"),
        _lines("checked in before dinner; arrived by taxi; came from the airport"),
        _lines("checked out in the morning; left for the beach; went to the airport"),
        things("floor, wing"),
        Thing("bed", "beds"),
    ),
    Place(
        "in the choir",
        things("singer, child/children, teenager"),
        things("boy, girl, singer"),
        _lines("joined in September; joined after the concert; were invited by a friend"),
        _lines("quit in the winter; moved to another city; left after the concert"),
        things("row"),
    ),
    Place(
        "in the chat group",
        things("member, player, student, gamer"),
        things("man/men, woman/women, member"),
        _lines("joined on Friday; were invited by a friend; signed up last week"),
        _lines("left on Sunday; quit last week; were removed last night"),
    ),
)
