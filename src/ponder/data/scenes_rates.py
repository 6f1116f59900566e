"""Speeds and rates, units and times, ages and lengths."""

from __future__ import annotations

from ponder.data.draw import Number, Unfit
from ponder.data.names import people
from ponder.data.story import Scene, Story
from ponder.data.things import Thing, thing

HOUR, MINUTE, DAY = Thing("hour", "hours"), Thing("minute", "minutes"), Thing("day", "days")
MILE, YEAR, LITER = Thing("mile", "miles"), Thing("year", "years"), Thing("liter", "liters")
FOOT, PAGE = Thing("foot", "feet"), Thing("page", "pages")
KNOWN = {2: "twice", 3: "three times", 4: "four times"}

TRAVEL = (
    ("rides a bicycle", 6, 16),
    ("drives a truck", 30, 60),
    ("walks", 2, 5),
    ("sails a boat", 5, 15),
    ("runs", 4, 9),
    ("drives a car", 40, 70),
    ("skates", 5, 12),
)
WAYS = (
    ("walked", "walk", 1, 9),
    ("ran", "run", 2, 9),
    ("hiked", "hike", 2, 14),
    ("biked", "bike", 3, 30),
    ("drove", "drive", 5, 80),
)
TOWN = ("school", "the market", "the lake", "a friend's house", "the library", "the station", "the beach")
RATES = (
    ("@who types {n} words every minute", "type", thing("word"), MINUTE),
    ("@who packs {n} boxes every hour", "pack", thing("box+es"), HOUR),
    ("@who reads {n} pages every day", "read", PAGE, DAY),
    ("@who paints {n} tiles every hour", "paint", thing("tile"), HOUR),
    ("@who learns {n} new words every day", "learn", thing("word"), DAY),
    ("@who plants {n} trees every day", "plant", thing("tree"), DAY),
    ("@who solves {n} puzzles every week", "solve", thing("puzzle"), thing("week")),
    ("@who peels {n} potatoes every minute", "peel", thing("potato+es"), MINUTE),
    ("@who does {n} push-ups every morning", "do", thing("push-up"), thing("morning")),
    ("@who writes {n} letters every week", "write", thing("letter"), thing("week")),
    ("@who drinks {n} cups of water every day", "drink", thing("cup of water/cups of water"), DAY),
    ("@who knits {n} rows every hour", "knit", thing("row"), HOUR),
)
MACHINES = (
    ("machine", "toy", "minute"),
    ("printer", "poster", "hour"),
    ("oven", "loaf/loaves", "hour"),
    ("loom", "rug", "day"),
    ("robot", "phone", "hour"),
    ("press+es", "coin", "minute"),
    ("worker", "basket", "day"),
    ("beehive", "jar of honey/jars of honey", "week"),
)
UNITS = (
    ("hour", "minute", 60, "a show"),
    ("minute", "second", 60, "a race"),
    ("day", "hour", 24, "a voyage"),
    ("week", "day", 7, "a summer camp"),
    ("year", "month", 12, "a building project"),
    ("dozen/dozen", "egg", 12, "a delivery"),
    ("foot/feet", "inch+es", 12, "a wooden board"),
    ("yard", "foot/feet", 3, "a rope"),
    ("meter", "centimeter", 100, "a ribbon"),
    ("kilometer", "meter", 1000, "a relay race"),
    ("kilogram", "gram", 1000, "a piece of dough"),
    ("pound", "ounce", 16, "a block of cheese"),
    ("gallon", "quart", 4, "a pot of soup"),
    ("quart", "cup", 4, "a jug of juice"),
    ("dollar", "cent", 100, "a bill"),
    ("decade", "year", 10, "a plan"),
)
CHORES = (
    "washing the dishes", "cleaning the kitchen", "watering the plants", "reading a story", "doing homework",
    "practicing the piano", "walking the dog", "folding the laundry", "cooking dinner", "drawing a picture",
    "sweeping the yard", "packing a bag",
)  # fmt: skip
MEASURES = (
    ("inches of rain", "inch+es", ("in the morning", "in the afternoon", "at night"), "fell", 1, 9),
    ("gallons of fuel", "gallon", ("on Monday", "on Tuesday", "on Wednesday"), "were used", 3, 30),
    ("pounds of flour", "pound", ("on Friday", "on Saturday", "on Sunday"), "were used", 5, 60),
    ("liters of milk", "liter", ("on Monday", "on Tuesday", "on Wednesday"), "were produced", 20, 90),
    ("miles of trail", "mile", ("in March", "in April", "in May"), "were cleared", 2, 20),
    ("cups of sugar", "cup", ("for a cake", "for cookies", "for a pie"), "were used", 2, 9),
    ("feet of snow", "foot/feet", ("in December", "in January", "in February"), "fell", 1, 12),
    (
        "kilograms of paper",
        "kilogram",
        ("in the first week", "in the second week", "in the third week"),
        "were collected",
        5,
        80,
    ),
)
CUTS = (
    ("ribbon", "inch+es"),
    ("rope", "foot/feet"),
    ("board", "inch+es"),
    ("wire", "centimeter"),
    ("pipe", "foot/feet"),
)
SHEDS = (("a tank", LITER), ("a barrel", LITER), ("a pool", thing("gallon")), ("a fish pond", thing("gallon")))


def journeys(story: Story, steps: int) -> None:
    """Distance, speed and time, over one to three legs."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about |= {"time", "length"}
    legs = (steps + 1) // 2
    moves = draw.some(TRAVEL, legs)
    if steps == 1 and draw.chance(0.5):
        does, low, high = moves[0]
        speed, hours = draw.integer(low, high), draw.integer(2, 9)
        story.tell(f"@who {does} at {story.say(speed)} miles per hour", who)
        story.shape.append("time")
        story.ask(f"how many hours does @who need for {story.some(speed * hours, MILE)}", who)
        story.over(speed * hours, speed, HOUR)
        return
    parts: list[Number] = []
    for place, (does, low, high) in enumerate(moves):
        speed, hours = draw.integer(low, high), draw.integer(2, 9)
        then = "then " if place else ""
        story.tell(f"{then}@who {does} for {story.some(hours, HOUR)} at {story.say(speed)} miles per hour", who)
        parts.append(story.times(speed, hours, MILE, "" if legs == 1 else f"in {hours} hours"))
    story.shape.append(f"{legs}legs")
    total = story.sum(parts, MILE, "in all") if legs > 1 else parts[0]
    story.ask("how many miles does @who travel" + (" in all" if legs > 1 else ""), who)
    if steps % 2 == 0:
        story.shape.append("rest")
        way = total + draw.count(2)
        story.tell(f"the whole way is {story.some(way, MILE)} long")
        story.ask("how many miles are left", who)
        story.minus(way, total, MILE, "left")


def trip_legs(story: Story, steps: int) -> None:
    """A way in parts: the whole, or what is left."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about |= {"length", "time"}
    past, base, low, high = draw.pick(WAYS)
    places = draw.some(TOWN, 4)
    left = steps > 1 and draw.chance(0.4)
    count = steps if left else steps + 1
    if count > 4:
        raise Unfit
    parts: list[Number] = [draw.measure(low, high) for _ in range(count)]
    for place, part in zip(places, parts, strict=False):
        then = "then " if story.facts else ""
        story.tell(f"{then}@who {past} {story.some(part, MILE)} to {place}", who)
    total = story.sum(parts, MILE, "in all")
    story.ask(f"how many miles did @who {base} in all", who)
    if left:
        story.shape.append("left")
        goal = total + draw.measure(low, high)
        story.tell(f"the whole way is {story.some(goal, MILE)} long")
        story.ask("how many miles are left")
        story.minus(goal, total, MILE, "left")


def steady_work(story: Story, steps: int) -> None:
    """So many in each hour or day: how many in all, how long, how many are left."""
    draw = story.draw
    who = people(draw, 1)[0]
    text, base, item, unit = draw.pick(RATES)
    story.about |= {"time", "pages"}
    rate, times = draw.size(), draw.few()
    story.tell(text.format(n=story.say(rate)), who)
    done = rate * times
    if steps == 1 and draw.chance(0.5):
        story.shape.append("how_long")
        story.ask(f"how many {unit.many} does it take @him to {base} {story.some(done, item)}", who)
        story.over(done, rate, unit)
        return
    if steps == 2 and draw.chance(0.5):
        story.shape.append("rest_time")
        before = draw.count(2)
        story.tell(f"@who wants to {base} {story.some(done + before, item)} and has finished {story.say(before)}", who)
        story.ask(f"how many more {unit.many} does @who need", who)
        story.over(story.minus(done + before, before, item, "left"), rate, unit)
        return
    story.ask(f"how many {item.many} does @who {base} in {story.some(times, unit)}", who)
    total = story.times(rate, times, item, f"in {times} {unit.of(times)}")
    if steps == 1:
        return
    if steps == 2:
        story.shape.append("left")
        goal = total + draw.count(2)
        story.tell(f"@who wants to {base} {story.some(goal, item)}", who)
        story.ask(f"how many {item.many} are left after {story.some(times, unit)}", who)
        story.minus(goal, total, item, "left")
        return
    story.shape.append("faster")
    faster = rate + draw.integer(1, 5)
    others = people(draw, 2)
    helper = others[0] if others[0] != who else others[1]
    story.tell(f"@who manages {story.say(faster)} in the same time", helper)
    story.ask(f"how many {item.many} do {who.name} and {helper.name} {base} together in {story.some(times, unit)}")
    story.plus(total, story.times(faster, times, item, f"for {helper.name}"), item, "together")


def machines(story: Story, steps: int) -> None:
    """So many machines make so many each hour."""
    draw = story.draw
    maker_word, item_word, unit_word = draw.pick(MACHINES)
    maker, item, unit = thing(maker_word), thing(item_word), thing(unit_word)
    count, rate, times = draw.few(), draw.size(), draw.few()
    story.about.add("time")
    makes = f"makes {story.some(rate, item)} every {unit.one}"
    a = "an" if maker.one[0] in "aeiou" else "a"
    story.tell(f"{a} {maker.one} {makes}")
    if steps == 1:
        story.ask(f"how many {item.many} do {story.some(count, maker)} make in one {unit.one}")
        story.times(count, rate, item, f"in one {unit.one}")
        return
    together = story.times(count, rate, item, f"in one {unit.one}")
    total = story.times(together, times, item, f"in {times} {unit.of(times)}")
    story.ask(f"how many {item.many} do {story.some(count, maker)} make in {story.some(times, unit)}")
    if steps == 3:
        bad = draw.below(total)
        story.shape.append("bad")
        story.tell(f"{story.some(count, maker)} work for {story.some(times, unit)}")
        story.tell(f"{story.say(bad)} of the {item.many} are damaged")
        story.ask(f"how many {item.many} are not damaged")
        story.minus(total, bad, item, "not damaged")


def tanks(story: Story, steps: int) -> None:
    """Water in, water out."""
    draw = story.draw
    what, unit = draw.pick(SHEDS)
    the = what.replace("a ", "the ", 1)
    story.about.add("time")
    start, rate, minutes = draw.count(10), draw.size(), draw.few()
    story.tell(f"{what} holds {story.some(start, unit)} of water")
    if steps == 1:
        minutes = draw.divisor(start)
        story.shape.append("empty")
        story.tell(f"{story.some(minutes, unit)} flow out every minute")
        story.ask("after how many minutes is it empty")
        story.over(start, minutes, MINUTE)
        return
    grows = draw.chance(0.5)
    story.shape.append("in" if grows else "out")
    flow = "into" if grows else "out of"
    story.tell(f"for {story.some(minutes, MINUTE)}, {story.some(rate, unit)} of water per minute flow {flow} {the}")
    moved = story.times(minutes, rate, unit, f"in {minutes} minutes")
    now = (story.plus if grows else story.minus)(start, moved, unit, "now" if grows else "left")
    story.ask(f"how many {unit.many} of water are in {the} then")
    if steps == 3:
        if draw.chance(0.5):
            story.shape.append("used")
            used = draw.below(now, 2)
            story.tell(f"after that, {story.some(used, unit)} are used for the garden")
            story.minus(now, used, unit, "left")
        else:
            story.shape.append("missing")
            room = max(start, now) + draw.count(2)
            story.tell(f"{the} can hold {story.some(room, unit)}")
            story.ask(f"how many more {unit.many} fit into {the} then")
            story.minus(room, now, unit, "more")


def units(story: Story, steps: int) -> None:
    """From a large unit to a small one or back, alone or with something added."""
    draw = story.draw
    large_word, small_word, size, whole = draw.pick(UNITS)
    large, small = thing(large_word), thing(small_word)
    story.about |= {"time", "length", "money", "age"}
    count = draw.integer(2, 9)
    if steps == 1:
        known = f"one {large.one} is {story.some(size, small)}"
        if draw.chance(0.5):
            story.shape.append("down")
            story.tell(known)
            story.ask(f"how many {small.many} are {story.some(count, large)}")
            story.times(count, size, small)
        else:
            story.shape.append("up")
            story.tell(known)
            story.ask(f"how many {large.many} are {story.some(count * size, small)}")
            story.over(count * size, size, large)
        return
    more = draw.below(size)
    story.shape.append("and")
    total = story.times(count, size, small)
    if steps == 2:
        story.tell(f"there are {story.some(size, small)} in one {large.one}")
        story.ask(f"how many {small.many} are {story.some(count, large)} and {story.some(more, small)}")
        story.plus(total, more, small, "in all")
        return
    parts = draw.divisor(total + more)
    length = f"{story.some(count, large)} and {story.some(more, small)}"
    story.tell(f"{whole} of {length} is divided into {story.say(parts)} equal parts")
    story.tell(f"there are {story.some(size, small)} in one {large.one}")
    story.ask(f"how many {small.many} has each part")
    story.over(story.plus(total, more, small, "in all"), parts, small, "in each part")


def chores(story: Story, steps: int) -> None:
    """Minutes spent on this and that, maybe on several days."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about |= {"time", "pages"}
    days = draw.integer(2, 7) if steps > 1 and draw.chance(0.5) else 1
    count = steps + 1 - (1 if days > 1 else 0)
    left = days == 1 and steps > 1 and draw.chance(0.4)
    if left:
        count -= 1
    tasks = draw.some(CHORES, count)
    minutes: list[Number] = [draw.integer(1, 12) * 5 if draw.chance(0.5) else draw.integer(3, 50) for _ in tasks]
    when = draw.pick(("today", "yesterday", "on Sunday")) if days == 1 else "every day"
    spends = "spends" if days > 1 else "spent"
    for place, (task, each) in enumerate(zip(tasks, minutes, strict=True)):
        first = f"{when}, @who {spends} {story.some(each, MINUTE)} {task}"
        also = "every day, @who also" if days > 1 else "@who also"
        story.tell(first if not place else f"{also} {spends} {story.some(each, MINUTE)} {task}", who)
    total = story.sum(minutes, MINUTE, "in all") if count > 1 else minutes[0]
    if days > 1:
        story.shape.append("days")
        story.ask(f"how many minutes is that in {story.some(days, DAY)}", who)
        story.times(total, days, MINUTE, f"in {days} days")
    elif left:
        story.shape.append("left")
        had = total + draw.integer(5, 60)
        story.tell(f"@who had {story.some(had, MINUTE)} for all of it and rested for the remaining time", who)
        story.ask("how many minutes did @who rest", who)
        story.minus(had, total, MINUTE, "left")
    else:
        story.ask("how many minutes was that in all", who)


def ages(story: Story, steps: int) -> None:
    """Older, younger, twice as old; in so many years, so many years ago."""
    draw = story.draw
    first, second = people(draw, 2)
    story.about |= {"age", "time"}
    age = draw.integer(6, 40)
    story.tell(f"@who is {story.some(age, YEAR)} old", first)
    if steps == 1:
        years = draw.integer(2, 30)
        if draw.chance(0.5):
            story.shape.append("later")
            story.ask(f"how old will @who be in {story.some(years, YEAR)}", first)
            story.plus(age, years, YEAR, "old")
        else:
            story.shape.append("ago")
            years = draw.below(age, 2)
            story.ask(f"how old was @who {story.some(years, YEAR)} ago", first)
            story.minus(age, years, YEAR, "old")
        return
    kind = draw.pick(("older", "younger", "times"))
    story.shape.append(kind)
    if kind == "times":
        times = draw.integer(2, max(2, min(4, 90 // age)))
        story.tell(f"@who is {KNOWN[times]} as old as {first.name}", second, first)
        other = story.times(age, times, YEAR, f"for {second.name}")
    else:
        gap = draw.below(age, 2)
        story.tell(f"@who is {story.some(gap, YEAR)} {kind} than {first.name}", second, first)
        other = (story.plus if kind == "older" else story.minus)(age, gap, YEAR, f"for {second.name}")
    if steps == 2:
        ending = draw.pick(("sum", "later", "ago"))
        story.shape.append(ending)
        if ending == "sum":
            story.ask(f"how old are {first.name} and {second.name} together")
            story.plus(age, other, YEAR, "together")
        elif ending == "later":
            years = draw.integer(2, 20)
            story.ask(f"how old will @who be in {story.some(years, YEAR)}", second)
            story.plus(other, years, YEAR, "old")
        else:
            years = draw.below(other)
            story.ask(f"how old was @who {story.some(years, YEAR)} ago", second)
            story.minus(other, years, YEAR, "old")
        return
    years = draw.integer(2, 20)
    story.shape.append("sum_later")
    story.ask(f"how old will {first.name} and {second.name} be together in {story.some(years, YEAR)}")
    first_then = story.plus(age, years, YEAR, f"for {first.name}")
    other_then = story.plus(other, years, YEAR, f"for {second.name}")
    story.plus(first_then, other_then, YEAR, "together")


def amounts(story: Story, steps: int) -> None:
    """What is measured on two or three days: together, or the difference."""
    draw = story.draw
    what, word, when, were, low, high = draw.pick(MEASURES)
    unit = thing(word)
    count = min(steps + 1, 3)
    values = [draw.measure(low, high) for _ in range(count)]
    for day, value in zip(when, values, strict=False):
        verb = were.replace("were", "was", 1) if value == 1 else were
        story.tell(f"{story.say(value)} {what.replace(unit.many, unit.of(value), 1)} {verb} {day}")
    if steps == 1 and draw.chance(0.4):
        story.shape.append("difference")
        if values[0] <= values[1]:
            raise Unfit
        story.ask(f"how many more {what} {were} {when[0]} than {when[1]}")
        story.minus(values[0], values[1], unit, "more")
        return
    story.ask(f"how many {what} {were} in all")
    total = story.sum(values, unit, "in all")
    if steps == 3:
        story.shape.append("goal")
        goal = total + draw.measure(low, high)
        story.tell(f"the plan was for {story.some(goal, unit)}")
        story.ask(f"how many {unit.many} are missing")
        story.minus(goal, total, unit, "missing")


def cuts(story: Story, steps: int) -> None:
    """Something long is cut into pieces."""
    draw = story.draw
    who = people(draw, 1)[0]
    what, word = draw.pick(CUTS)
    unit, piece = thing(word), Thing("piece", "pieces")
    story.about.add("length")
    pieces, each = draw.few(), draw.size()
    if steps == 1:
        story.tell(f"@who has a {what} of {story.some(pieces * each, unit)}", who)
        if draw.chance(0.5):
            story.shape.append("pieces")
            story.ask(f"into how many pieces of {story.some(each, unit)} can @who cut it", who)
            story.over(pieces * each, each, piece)
        else:
            story.shape.append("each")
            story.tell(f"@who cuts the {what} into {story.some(pieces, piece)} of the same length", who)
            story.ask(f"how many {unit.many} long is each piece", who)
            story.over(pieces * each, pieces, unit, "for each piece")
        return
    if steps == 2:
        whole = pieces * each + draw.count(2)
        story.tell(f"@who has a {what} of {story.some(whole, unit)}", who)
        story.tell(f"@who cuts off {story.some(pieces, piece)} of {story.some(each, unit)} each", who)
        story.ask(f"how many {unit.many} are left", who)
        story.minus(whole, story.times(pieces, each, unit, "cut off"), unit, "left")
        return
    other_pieces, other_each = draw.few(), draw.size()
    story.tell(f"@who needs {story.some(pieces, piece)} of {what} of {story.some(each, unit)} each", who)
    story.tell(f"@who also needs {story.some(other_pieces, piece)} of {story.some(other_each, unit)} each", who)
    story.ask(f"how many {unit.many} of {what} does @who need", who)
    a = story.times(pieces, each, unit)
    b = story.times(other_pieces, other_each, unit)
    story.plus(a, b, unit, "in all")


SCENES = (
    Scene("journeys", journeys, (1, 2, 3, 4, 5)),
    Scene("trip_legs", trip_legs, (1, 2, 3, 4), weight=2),
    Scene("steady_work", steady_work, (1, 2, 3), weight=2),
    Scene("machines", machines, (1, 2, 3)),
    Scene("tanks", tanks, (1, 2, 3)),
    Scene("units", units, (1, 2, 3)),
    Scene("chores", chores, (1, 2, 3, 4)),
    Scene("ages", ages, (1, 2, 4)),
    Scene("amounts", amounts, (1, 2, 3)),
    Scene("cuts", cuts, (1, 2, 3)),
)
