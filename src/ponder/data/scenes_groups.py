"""Equal groups: rows and boxes, what each gets, how many are needed."""

from __future__ import annotations

from ponder.data.draw import Number, Unfit
from ponder.data.names import crowd, people
from ponder.data.story import DOLLAR, Scene, Story
from ponder.data.things import KITS, Thing, thing

ROWS = (
    ("a farmer", "plants {n} in a field", "field", "tree, bush+es, cabbage, vine, pumpkin"),
    ("a gardener", "plants {n} along a path", "garden", "rose, tulip, hedge, shrub"),
    ("a teacher", "sets up {n} in a hall", "hall", "chair, desk, stool, easel"),
    ("a band leader", "lines up {n} on a field", "band", "drummer, musician, trumpeter"),
    ("a builder", "lays {n} on a floor", "floor", "tile, plank, stone"),
    ("an officer", "lines up {n} in a yard", "yard", "cadet, soldier, scout"),
)
NESTED = (
    ("a library", "bookcase", "shelf/shelves", "book"),
    ("a warehouse", "row", "crate", "lamp"),
    ("a school", "floor", "classroom", "desk"),
    ("a hotel", "floor", "room", "bed"),
    ("a factory", "hall", "machine", "worker"),
    ("a bakery", "oven", "tray", "roll"),
    ("an orchard", "field", "row", "tree"),
    ("a stadium", "block", "row", "seat"),
    ("a store", "aisle", "shelf/shelves", "can"),
    ("a city", "street", "house", "window"),
    ("a ship", "deck", "cabin", "bunk"),
    ("a museum", "wing", "room", "painting"),
)
TEAMS = (
    ("students", "van", "in each van"),
    ("players", "team", "on each team"),
    ("children", "table", "at each table"),
    ("tourists", "boat", "in each boat"),
    ("workers", "crew", "in each crew"),
    ("campers", "tent", "in each tent"),
    ("guests", "bench+es", "on each bench"),
    ("dancers", "group", "in each group"),
    ("visitors", "cable car", "in each cable car"),
)
YOUNG = ("students", "players", "children", "campers", "dancers")
LEGS = (
    ("on a farm", (("cow", 4), ("hen", 2), ("goat", 4), ("duck", 2), ("pig", 4), ("turkey", 2)), "leg"),
    ("in a garage", (("car", 4), ("bicycle", 2), ("tricycle", 3), ("truck", 6), ("scooter", 2)), "wheel"),
    ("in a workshop", (("stool", 3), ("table", 4), ("chair", 4), ("tripod", 3)), "leg"),
    ("in a toy shop", (("toy spider", 8), ("toy beetle", 6), ("toy ant", 6), ("toy crab", 10)), "leg"),
    ("in a picture", (("triangle", 3), ("square", 4), ("hexagon", 6), ("pentagon", 5)), "side"),
)
PARTY = (
    ("guest", "cookie", "box+es"),
    ("guest", "napkin", "pack"),
    ("child/children", "balloon", "bag"),
    ("student", "pencil", "box+es"),
    ("runner", "bottle of water/bottles of water", "case"),
    ("camper", "granola bar", "box+es"),
    ("visitor", "sticker", "roll"),
    ("player", "orange", "bag"),
    ("worker", "glove", "pack"),
)


def rows(story: Story, steps: int) -> None:
    """Rows of as many each; some are taken away, or each costs something."""
    draw = story.draw
    who, does, where, words = draw.pick(ROWS)
    item = thing(draw.pick(words.split(", ")))
    count, each = draw.few(3), draw.size(3)
    row = thing("row")
    placed = does.format(n=f"{story.some(count, row)} of {item.many} with {story.some(each, item)} in each row")
    story.tell(f"{who} {placed}")
    total = story.times(count, each, item, "in the rows")
    if steps == 1:
        story.shape.append("total")
        story.ask(draw.pick((f"how many {item.many} are there", f"how many {item.many} are there in all")))
        return
    rest: Number = total
    second = steps - 1
    if second == 2:
        story.shape.append("another")
        more_rows, more_each = draw.few(2), draw.size(2)
        more_of_them = f"{story.say(more_rows)} more {row.of(more_rows)} of {story.say(more_each)} {item.many} each"
        story.tell(f"{more_of_them} are added later")
        rest = story.plus(total, story.times(more_rows, more_each, item, "more"), item, "in all")
        story.ask(f"how many {item.many} are there now")
    elif draw.chance(0.5):
        story.shape.append("gone")
        gone = draw.below(total, 2)
        story.tell(f"{story.say(gone)} of the {item.many} are taken away again")
        story.ask(f"how many {item.many} are left")
        story.minus(rest, gone, item, "left")
    else:
        story.shape.append("extra")
        extra = draw.count(2)
        story.tell(f"there are {story.say(extra)} more {item.many} outside the {where}")
        story.ask(f"how many {item.many} are there in total")
        story.plus(rest, extra, item, "in total")


def row_length(story: Story, steps: int) -> None:
    """How many rows, or how long each is, after some were taken out or two lots were put together."""
    draw = story.draw
    who, _, _, words = draw.pick(ROWS)
    item = thing(draw.pick(words.split(", ")))
    row, value = thing("row"), _counted(story, item, steps - 1)
    parts = draw.divisor(value)
    if draw.chance(0.5):
        story.shape.append("rows")
        story.tell(f"{who} puts {story.some(parts, item)} in each row")
        story.ask(f"how many rows of {item.many} are there")
        story.over(value, parts, row)
    else:
        story.shape.append("each")
        story.tell(f"{who} makes {story.some(parts, row)} of equal length")
        story.ask(f"how many {item.many} are in each row")
        story.over(value, parts, item, "in each row")


def _counted(story: Story, item: Thing, steps: int) -> Number:
    """How many there are of something that nobody owns, told in so many steps."""
    draw = story.draw
    if steps == 0:
        first = draw.count(6)
        story.tell(f"there are {story.some(first, item)}")
        return first
    if steps == 1 and draw.chance(0.5):
        story.shape.append("added")
        a, b = draw.count(), draw.count()
        story.tell(f"there are {story.some(a, item)} at first, and {story.say(b)} more arrive")
        return story.plus(a, b, item, "in all")
    story.shape.append("removed")
    value: Number = draw.count(20) if steps == 1 else _counted(story, item, steps - 1)
    broken = draw.below(value, 2)
    if steps == 1:
        story.tell(f"there are {story.some(value, item)}, but {story.say(broken)} of them are not needed")
    else:
        story.tell(f"{story.say(broken)} of the {item.many} are sent away")
    return story.minus(value, broken, item, "left")


def nested(story: Story, steps: int) -> None:
    """Groups of groups."""
    draw = story.draw
    where, *words = draw.pick(NESTED)
    outer, inner, item = map(thing, words)
    a, b, c = draw.few(), draw.few(), draw.size()
    story.tell(
        draw.pick(
            (
                f"{where} has {story.some(a, outer)} of {story.some(b, inner)} each",
                f"{where} has {story.some(a, outer)}, and each {outer.one} has {story.some(b, inner)}",
            )
        )
    )
    story.tell(f"each {inner.one} has {story.some(c, item)}")
    inners = story.times(a, b, inner)
    items = story.times(inners, c, item, "in all")
    if steps == 2:
        story.ask(f"how many {item.many} are there in {where.replace('a ', 'the ', 1).replace('an ', 'the ', 1)}")
        return
    story.shape.append("some")
    missing = draw.below(items, 2)
    story.tell(f"{story.say(missing)} of the {item.many} are new")
    story.ask(f"how many {item.many} are not new")
    story.minus(items, missing, item, "not new")


def two_sizes(story: Story, steps: int) -> None:
    """Groups of two sizes: how many in all, or how many more of one than of the other."""
    draw = story.draw
    who = people(draw, 1)[0]
    kit = draw.pick(KITS)
    item, (first, second) = draw.pick(kit.things), draw.some(kit.boxes, 2)
    a, b, c, d = draw.few(), draw.size(), draw.few(), draw.size()
    story.tell(f"@who has {story.some(a, first)} with {story.some(b, item)} in each {first.one}", who)
    story.tell(f"@who also has {story.some(c, second)} with {story.some(d, item)} in each {second.one}", who)
    in_first = story.times(a, b, item, f"in the {first.many}")
    in_second = story.times(c, d, item, f"in the {second.many}")
    if draw.chance(0.6):
        story.shape.append("total")
        total = story.plus(in_first, in_second, item, "in all")
        story.ask(
            draw.pick((f"how many {item.many} does @who have", f"how many {item.many} does @who have in all")), who
        )
        if steps == 4:
            story.shape.append("share")
            friends, takers = draw.divisor(total), crowd(draw)
            story.tell(f"@who shares the {item.many} equally among {story.say(friends)} {takers}", who)
            story.ask(f"how many {item.many} does each of the {takers} get", who)
            story.over(total, friends, item, f"for each of the {takers}")
        return
    if steps == 4:
        raise Unfit
    story.shape.append("difference")
    if in_first <= in_second:
        raise Unfit
    story.ask(f"how many more {item.many} are in the {first.many} than in the {second.many}", who)
    story.minus(in_first, in_second, item, "more")


def groups_gone(story: Story, steps: int) -> None:
    """Whole groups are given away; what is in the others is asked."""
    draw = story.draw
    who = people(draw, 1)[0]
    kit = draw.pick(KITS)
    item, box = draw.pick(kit.things), draw.pick(kit.boxes)
    groups, each = draw.few(4), draw.size()
    gone = draw.below(groups - 1)
    story.tell(f"@who has {story.some(groups, box)} with {story.some(each, item)} in each {box.one}", who)
    verb = draw.pick(("gives away", "sells", "loses"))
    story.tell(f"@who {verb} {story.say(gone)} of the {box.many}", who)
    left = story.minus(groups, gone, box, "left")
    story.ask(f"how many {item.many} does @who have left", who)
    value = story.times(left, each, item, "left")
    if steps == 3:
        story.shape.append("more")
        more = draw.count(2)
        story.tell(f"then @who gets {story.say(more)} more {item.of(more)}", who)
        story.ask(f"how many {item.many} does @who have in the end", who)
        story.plus(value, more, item, "now")


def same_rate(story: Story, steps: int) -> None:
    """So many groups hold so many: how many does one hold, and how many do others hold?"""
    draw = story.draw
    kit = draw.pick(KITS)
    item, box = draw.pick(kit.things), draw.pick(kit.boxes)
    groups, each = draw.few(), draw.size()
    story.tell(
        draw.pick(
            (
                f"there are {story.some(groups * each, item)} in {story.some(groups, box)}, the same number in each",
                f"{story.some(groups, box)} hold {story.some(groups * each, item)}, all the same number",
            )
        )
    )
    one = story.over(groups * each, groups, item, f"in one {box.one}")
    if steps == 1:
        story.ask(f"how many {item.many} are in one {box.one}")
        return
    others = draw.pick([number for number in range(2, 13) if number != groups])
    story.ask(f"how many {item.many} are in {story.say(others)} such {box.many}")
    story.times(one, others, item, f"in {others} {box.many}")


def teams(story: Story, steps: int) -> None:
    """People in groups: how many groups, or how many in each, after some joined or stayed away."""
    draw = story.draw
    story.about.add("people")
    members, group_word, where = draw.pick(TEAMS)
    group, member = thing(group_word), Thing("person", members)
    value: Number
    if steps == 1:
        value = draw.count(6)
        story.tell(f"there are {story.say(value)} {members}")
    else:
        value = _mixed(story, member, draw.chance(0.5))
    if steps == 3:
        story.shape.append("away")
        away = draw.below(value, 2)
        story.tell(f"{story.say(away)} of the {members} stay at home")
        value = story.minus(value, away, member, "left")
    parts = draw.divisor(value)
    if draw.chance(0.5):
        story.shape.append("groups")
        story.tell(f"{story.say(parts)} {members} can be {where}")
        story.ask(f"how many {group.many} do they need")
        story.over(value, parts, group)
    else:
        story.shape.append("each")
        story.tell(f"the {members} are divided equally among {story.some(parts, group)}")
        story.ask(f"how many {members} are {where}")
        story.over(value, parts, member, where)


def _mixed(story: Story, member: Thing, told: bool) -> Number:
    draw = story.draw
    if told:
        story.shape.append("mixed")
        first, second = ("boys", "girls") if member.many in YOUNG else ("men", "women")
        a, b = draw.count(), draw.count()
        story.tell(f"a group of {member.many} has {story.say(a)} {first} and {story.say(b)} {second}")
        return story.plus(a, b, member, "in all")
    story.shape.append("joined")
    a, b = draw.count(), draw.count(2)
    story.tell(f"there are {story.say(a)} {member.many}")
    story.tell(f"{story.say(b)} more {member.many} join them")
    return story.plus(a, b, member, "in all")


def trips(story: Story, steps: int) -> None:
    """How often somebody has to go who can carry so many at a time."""
    draw = story.draw
    who = people(draw, 1)[0]
    item = draw.pick(draw.pick(KITS).things)
    trip, once = Thing("trip", "trips"), draw.integer(3, 9)
    if steps in (1, 3):
        value: Number = draw.count(8)
        story.tell(f"@who has to carry {story.some(value, item)} to another room", who)
    else:
        a, b = draw.count(), draw.count()
        both = f"{story.some(a, item)} from one table and {story.some(b, item)} from another"
        story.tell(f"@who has to carry {both}", who)
        value = story.plus(a, b, item, "in all")
    story.tell(f"@who can carry {story.some(once, item)} at a time", who)
    story.ask("how many trips does @who have to make", who)
    if steps < 3:
        if value < 2 * once:
            raise Unfit
        story.shape.append("even")
        story.over(value, once, trip)
        return
    story.shape.append("rest")
    full = int(value) // once
    if full < 2 or value % once == 0:
        raise Unfit
    carried = story.times(full, once, item, f"in {full} full trips")
    story.minus(value, carried, item, "left over")
    story.plus(full, 1, trip)


def legs(story: Story, steps: int) -> None:
    """Legs, wheels, sides."""
    draw = story.draw
    where, sorts, word = draw.pick(LEGS)
    part = thing(word)
    if steps == 1:
        name, per = draw.pick(sorts)
        kind, count = thing(name), draw.integer(3, 12)
        story.tell(f"there are {story.some(count, kind)} {where}, and each {kind.one} has {story.some(per, part)}")
        story.ask(f"how many {part.many} do the {kind.many} have")
        story.times(count, per, part)
        return
    kinds = draw.some(sorts, 2)
    totals: list[Number] = []
    for name, per in kinds:
        kind, count = thing(name), draw.integer(2, 12)
        story.tell(f"there are {story.some(count, kind)} {where} with {story.some(per, part)} each")
        totals.append(story.times(count, per, part, f"for the {kind.many}"))
    story.ask(f"how many {part.many} do they have in all")
    story.plus(totals[0], totals[1], part, "in all")


def supplies(story: Story, steps: int) -> None:
    """What a party needs, what is there, how many packs are missing, what they cost."""
    draw = story.draw
    guest_word, item_word, box_word = draw.pick(PARTY)
    guest, item, box = thing(guest_word), thing(item_word), thing(box_word)
    guests, each = draw.count(4), draw.integer(2, 6)
    story.about.add("people")
    story.tell(
        draw.pick(
            (
                f"{story.some(guests, guest)} are coming, and each {guest.one} gets {story.some(each, item)}",
                f"each of {story.some(guests, guest)} gets {story.some(each, item)}",
            )
        )
    )
    needed = story.times(guests, each, item, "in all")
    story.ask(f"how many {item.many} are needed")
    if steps == 1:
        return
    if steps > 2:
        story.shape.append("have")
        have = draw.below(needed, 2)
        story.tell(f"there are already {story.some(have, item)}")
        needed = story.minus(needed, have, item, "still needed")
    size = draw.divisor(needed)
    story.shape.append("packs")
    story.tell(f"{item.many} come in {box.many} of {story.say(size)}")
    packs = story.over(needed, size, box)
    story.ask(f"how many {box.many} have to be bought")
    if steps > 3:
        story.shape.append("cost")
        price = draw.price(2, 9)
        story.tell(f"a {box.one} costs {story.dollars(price)}")
        story.ask(f"how much do the {box.many} cost that have to be bought")
        story.times(packs, price, DOLLAR, f"for the {box.many}")


SCENES = (
    Scene("rows", rows, (1, 2, 3)),
    Scene("row_length", row_length, (1, 2, 3)),
    Scene("nested", nested, (2, 3)),
    Scene("two_sizes", two_sizes, (3, 4)),
    Scene("groups_gone", groups_gone, (2, 3)),
    Scene("same_rate", same_rate, (1, 2)),
    Scene("teams", teams, (1, 2, 3), weight=2),
    Scene("trips", trips, (1, 2, 3, 4)),
    Scene("legs", legs, (1, 3)),
    Scene("supplies", supplies, (1, 2, 3, 4)),
)
