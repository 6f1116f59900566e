"""Parts of a whole: the other part, fractions and percentages, averages, for every so many, areas."""

from __future__ import annotations

from ponder.data.draw import Number, Unfit
from ponder.data.names import people
from ponder.data.story import DOLLAR, Scene, Story
from ponder.data.things import KITS, Thing, thing

WHOLES = (
    ("in a class", "student", "wear glasses", "do not wear glasses"),
    ("in a club", "member", "play an instrument", "do not play an instrument"),
    ("on a team", "player", "are new", "are not new"),
    ("in a parking garage", "car", "are red", "are not red"),
    ("in a box", "light bulb", "are broken", "are not broken"),
    ("in a park", "tree", "are oaks", "are not oaks"),
    ("on a farm", "animal", "are sheep", "are not sheep"),
    ("in a bowl", "grape", "are green", "are not green"),
    ("on a shelf", "book", "are novels", "are not novels"),
    ("in a town", "house", "have a garden", "have no garden"),
    ("at a meeting", "guest", "drink tea", "do not drink tea"),
    ("in a choir", "singer", "are children", "are not children"),
)
FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}
SHARES = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 75, 80, 90)
GAMES = (
    ("basketball", "basket", "point", (2, 3)),
    ("a board game", "castle", "point", (4, 7)),
    ("a quiz", "question", "point", (5, 10)),
    ("a video game", "star", "point", (6, 8)),
    ("an archery contest", "target", "point", (3, 9)),
    ("a dart game", "hit", "point", (5, 20)),
)
TESTS = (
    ("scored", thing("point"), "in {n} games"),
    ("read", thing("page"), "on {n} days"),
    ("drove", thing("mile"), "on {n} trips"),
    ("washed", thing("car"), "on {n} days"),
    ("scored", thing("goal"), "in {n} seasons"),
    ("caught", thing("fish/fish"), "on {n} fishing trips"),
    ("sold", thing("painting"), "in {n} months"),
    ("planted", thing("tree"), "in {n} weeks"),
)
GARDENS = ("garden", "field", "playground", "yard", "park", "lawn")


def other_part(story: Story, steps: int) -> None:
    """A whole, one or two parts of it, and the rest; then the rest is divided."""
    draw = story.draw
    where, word, are, are_not = draw.pick(WHOLES)
    item = thing(word)
    story.about.add("people")
    whole = draw.count(6)
    part = draw.below(whole, 2)
    story.tell(f"there are {story.some(whole, item)} {where}, and {story.say(part)} of them {are}")
    rest = story.minus(whole, part, item, f"that {are_not}")
    story.ask(f"how many of the {item.many} {are_not}")
    if steps == 2:
        if draw.chance(0.5):
            story.shape.append("difference")
            if rest == part:
                raise Unfit
            more, less = (are, are_not) if part > rest else (are_not, are)
            story.ask(f"how many more of the {item.many} {more} than {less}")
            story.minus(max(part, rest), min(part, rest), item, "more")
        else:
            story.shape.append("groups")
            groups = draw.divisor(rest)
            story.tell(f"the {item.many} that {are_not} are put into {story.say(groups)} equal groups")
            story.ask(f"how many {item.many} are in each of these groups")
            story.over(rest, groups, item, "in each group")


def fraction_of(story: Story, steps: int) -> None:
    """A fraction of a number, the rest, a fraction of the rest."""
    draw = story.draw
    where, word, are, are_not = draw.pick(WHOLES)
    item = thing(word)
    story.about.add("people")
    parts = draw.pick(tuple(FRACTIONS))
    whole = parts * draw.integer(2, max(3, draw.level.largest // (2 * parts)))
    words = FRACTIONS[parts] if draw.chance(0.6) else f"1/{parts}"
    story.tell(f"there are {story.some(whole, item)} {where}, and {words} of them {are}")
    some = story.over(whole, parts, item, f"that {are}")
    story.ask(f"how many of the {item.many} {are}")
    if steps == 1:
        return
    rest = story.minus(whole, some, item, f"that {are_not}")
    story.ask(f"how many of the {item.many} {are_not}")
    if steps == 3:
        story.shape.append("again")
        again = draw.divisor(rest, 6)
        if again not in FRACTIONS:
            raise Unfit
        story.tell(f"{FRACTIONS[again]} of the {item.many} that {are_not} are seen on a photo")
        story.ask(f"how many of the {item.many} that {are_not} are seen on the photo")
        story.over(rest, again, item, "on the photo")


def many_parts(story: Story, steps: int) -> None:
    """Several of so many equal parts: three quarters of a number."""
    draw = story.draw
    where, word, are, are_not = draw.pick(WHOLES)
    item = thing(word)
    story.about.add("people")
    parts = draw.integer(3, 10)
    taken = draw.integer(2, parts - 1)
    whole = parts * draw.integer(2, max(3, draw.level.largest // (2 * parts)))
    story.tell(f"there are {story.some(whole, item)} {where}, and {taken}/{parts} of them {are}")
    one = story.over(whole, parts, item, f"in 1/{parts}")
    some = story.times(one, taken, item, f"that {are}")
    story.ask(f"how many of the {item.many} {are}")
    if steps == 3:
        story.shape.append("rest")
        story.ask(f"how many of the {item.many} {are_not}")
        story.minus(whole, some, item, f"that {are_not}")


def percentages(story: Story, steps: int) -> None:
    """A share in percent, the rest, a share of the rest."""
    draw = story.draw
    where, word, are, are_not = draw.pick(WHOLES)
    item, share = thing(word), draw.pick(SHARES)
    story.about.add("people")
    step = 20 if share % 5 == 0 and share % 10 else 10
    whole = step * draw.integer(2, max(3, draw.level.largest // step))
    story.tell(f"there are {story.some(whole, item)} {where}, and {share}% of them {are}")
    some = story.percent(whole, share, item, f"that {are}")
    story.ask(f"how many of the {item.many} {are}")
    if steps == 1:
        return
    rest = story.minus(whole, some, item, f"that {are_not}")
    story.ask(f"how many of the {item.many} {are_not}")
    if steps > 2:
        story.shape.append("again")
        again = draw.pick([each for each in SHARES if rest * each % 100 == 0])
        story.tell(f"{again}% of the {item.many} that {are_not} are seen on a photo")
        story.ask(f"how many of the {item.many} that {are_not} are seen on the photo")
        on_photo = story.percent(rest, again, item, "on the photo")
        if steps == 4:
            story.shape.append("not")
            story.ask(f"how many of the {item.many} that {are_not} are not seen on the photo")
            story.minus(rest, on_photo, item, "not on the photo")


def discounts(story: Story, steps: int) -> None:
    """A price goes down or up by some percent; several are bought; the bill is paid."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about.add("money")
    what = draw.pick(("jacket", "lamp", "chair", "radio", "backpack", "tent", "clock", "watch", "keyboard"))
    share, price = draw.pick((5, 10, 20, 25, 30, 40, 50)), 10 * draw.integer(2, 20)
    down = draw.chance(0.7)
    story.shape.append("down" if down else "up")
    change = f"now costs {share}% {'less' if down else 'more'}"
    story.tell(f"a {what} cost {story.dollars(price)} and {change}")
    part = story.percent(price, share, DOLLAR, "less" if down else "of increase")
    now = (story.minus if down else story.plus)(price, part, DOLLAR, f"for one {what}")
    story.ask(f"how much does the {what} cost now")
    if steps >= 3:
        count = draw.integer(2, 9)
        plural = "watches" if what == "watch" else f"{what}s"
        story.shape.append("several")
        story.tell(f"@who buys {story.say(count)} {plural} at the new price", who)
        story.ask("how much does @who pay", who)
        now = story.times(now, count, DOLLAR, f"for {count} {plural}")
    if steps == 4:
        story.shape.append("left")
        has = now + draw.integer(3, 80)
        story.tell(f"@who had {story.dollars(has)} before", who)
        story.ask("how much money does @who have left", who)
        story.minus(has, now, DOLLAR, "left")


def averages(story: Story, steps: int) -> None:
    """The average of several numbers, or the number that is missing to an average."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about |= {"pages", "time", "length"}
    verb, unit, when = draw.pick(TESTS)
    when = when.format(n=story.say(steps))
    average = draw.integer(5, max(10, draw.level.largest // 4))
    values: list[Number] = [average + draw.integer(-min(average - 2, 20), 20) for _ in range(steps - 1)]
    last = average * steps - sum(values)
    if last < 2:
        raise Unfit
    numbers = [story.say(value) for value in values]
    if draw.chance(0.4):
        story.shape.append("missing")
        known = f"numbers were {', '.join(numbers[:-1])} and {numbers[-1]}" if steps > 2 else f"number was {numbers[0]}"
        story.tell(f"@who {verb} an average of {story.some(average, unit)} {when}", who)
        story.tell(f"the first {story.say(steps - 1)} {known}")
        story.ask("what was the last number")
        rest = story.times(average, steps, unit, "in all")
        for place, value in enumerate(values, 1):
            rest = story.minus(rest, value, unit, "left" if place < len(values) else "in the last one")
        return
    story.tell(f"@who {verb} {', '.join(numbers)} and {story.some(last, unit)} {when}", who)
    story.ask(f"how many {unit.many} was that on average")
    story.over(story.sum([*values, last], unit, "in all"), steps, unit, "on average")


def for_every(story: Story, steps: int) -> None:
    """For every so many of these there are so many of those."""
    draw = story.draw
    kit = draw.pick(KITS)
    first, second = draw.some(kit.things, 2)
    a, b, times = draw.integer(2, 6), draw.integer(2, 9), draw.few()
    group = Thing("group", "groups")
    story.tell(f"for every {story.some(a, first)} there are {story.some(b, second)}")
    story.tell(f"there are {story.some(a * times, first)}")
    groups = story.over(a * times, a, group)
    seconds = story.times(groups, b, second)
    story.ask(f"how many {second.many} are there")
    if steps == 3:
        story.shape.append("together")
        story.ask(f"how many {first.many} and {second.many} are there together")
        story.plus(a * times, seconds, Thing("thing", "things"), "together")


def scores(story: Story, steps: int) -> None:
    """Points of one or two sorts, and a penalty."""
    draw = story.draw
    who = people(draw, 1)[0]
    game, thing_word, point_word, worths = draw.pick(GAMES)
    item, point = thing(thing_word), thing(point_word)
    if steps == 1:
        count, worth = draw.few(), draw.pick(worths)
        story.tell(f"in {game}, each {item.one} is worth {story.some(worth, point)}")
        story.ask(f"how many points does @who get for {story.some(count, item)}", who)
        story.times(count, worth, point)
        return
    if steps == 2:
        count, worth = draw.few(3), draw.pick(worths)
        story.tell(f"in {game}, each {item.one} is worth {story.some(worth, point)}")
        lost = draw.integer(1, count * worth - 1)
        story.tell(f"@who gets {story.some(count, item)} and loses {story.some(lost, point)} for breaking a rule", who)
        story.ask("how many points does @who have", who)
        story.minus(story.times(count, worth, point), lost, point, "left")
        return
    low, high = worths
    easy, hard = draw.few(), draw.few()
    story.tell(f"in {game}, @who got {story.some(easy, item)} worth {story.say(low)} points each", who)
    story.tell(f"@who also got {story.some(hard, item)} worth {story.say(high)} points each", who)
    a = story.times(easy, low, point)
    b = story.times(hard, high, point)
    total = story.plus(a, b, point, "in all")
    story.ask("how many points did @who get", who)
    if steps == 4:
        story.shape.append("more")
        rival = draw.below(total)
        story.tell(f"@his opponent got {story.some(rival, point)}", who)
        story.ask("how many points more than the opponent did @who get", who)
        story.minus(total, rival, point, "more")


def rectangles(story: Story, steps: int) -> None:
    """Area and perimeter."""
    draw = story.draw
    what = draw.pick(GARDENS)
    story.about.add("length")
    foot, square = Thing("foot", "feet"), Thing("square foot", "square feet")
    a, b = draw.integer(3, 12), draw.size(4)
    story.tell(f"a {what} is {story.some(b, foot)} long and {story.some(a, foot)} wide")
    if steps == 1:
        story.shape.append("area")
        story.ask(f"how many square feet does the {what} cover")
        story.times(b, a, square)
    elif steps == 2:
        if draw.chance(0.6):
            story.shape.append("perimeter")
            story.ask(f"how many feet is it around the {what}")
            story.times(story.plus(b, a, foot), 2, foot, "around")
        else:
            story.shape.append("rest")
            used = draw.below(a * b, 2)
            story.tell(f"{story.some(used, square)} of it are covered with stones")
            story.ask("how many square feet are not covered with stones")
            story.minus(story.times(b, a, square, "in all"), used, square, "left")
    else:
        price = draw.price(2, 9)
        story.shape.append("fence")
        story.tell(f"a fence costs {story.dollars(price)} per foot")
        story.ask(f"how much does a fence around the {what} cost")
        around = story.times(story.plus(b, a, foot), 2, foot, "around")
        story.times(around, price, DOLLAR, "for the fence")


SCENES = (
    Scene("other_part", other_part, (1, 2), weight=2),
    Scene("fraction_of", fraction_of, (1, 2, 3), advanced=True),
    Scene("many_parts", many_parts, (2, 3), advanced=True),
    Scene("percentages", percentages, (1, 2, 3, 4), advanced=True),
    Scene("discounts", discounts, (2, 3, 4), advanced=True),
    Scene("averages", averages, (3, 4, 5), advanced=True),
    Scene("for_every", for_every, (2, 3)),
    Scene("scores", scores, (1, 2, 3, 4)),
    Scene("rectangles", rectangles, (1, 2, 3)),
)
