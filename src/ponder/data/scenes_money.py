"""Buying and selling, earning and saving."""

from __future__ import annotations

from ponder.data.draw import Number, Unfit
from ponder.data.names import Person, crowd, people
from ponder.data.story import CENT, DOLLAR, Scene, Story
from ponder.data.things import Thing, thing, things

SHOPS: tuple[tuple[str, tuple[tuple[Thing, int, int], ...]], ...] = tuple(
    (where, tuple((thing(word), low, high) for word, low, high in goods))
    for where, goods in (
        ("at the stationery shop", (("pen", 1, 4), ("notebook", 2, 6), ("folder", 1, 3), ("stapler", 5, 12))),
        (
            "at the grocery store",
            (
                ("melon", 2, 5),
                ("loaf/loaves", 2, 4),
                ("carton of eggs/cartons of eggs", 3, 6),
                ("bag of rice/bags of rice", 4, 9),
            ),
        ),
        ("at the hardware store", (("hammer", 8, 20), ("paint can", 9, 25), ("rope", 4, 9), ("lock", 5, 15))),
        ("at the clothing store", (("shirt", 8, 25), ("scarf/scarves", 6, 18), ("hat", 7, 20), ("sock", 1, 4))),
        ("at the toy store", (("puzzle", 5, 15), ("ball", 3, 9), ("board game", 12, 30), ("kite", 6, 14))),
        ("at the cafe", (("muffin", 2, 4), ("tea", 2, 3), ("sandwich+es", 4, 8), ("juice", 2, 5))),
        ("at the bookstore", (("novel", 6, 18), ("comic book", 3, 8), ("calendar", 5, 12), ("atlas+es", 15, 30))),
        (
            "at the garden center",
            (("rose bush+es", 7, 15), ("bag of soil/bags of soil", 4, 9), ("pot", 3, 8), ("shovel", 9, 20)),
        ),
        ("at the fair", (("pretzel", 2, 4), ("lemonade", 2, 4), ("ride ticket", 3, 6), ("balloon", 1, 3))),
        (
            "at the pet store",
            (("collar", 4, 12), ("bag of seeds/bags of seeds", 3, 9), ("fish bowl", 8, 20), ("chew toy", 2, 6)),
        ),
    )
)
JOBS = (
    ("hour of babysitting", "babysat for {n}", "hour"),
    ("lawn @who mows", "mowed {n}", "lawn"),
    ("dog @who walks", "walked {n}", "dog"),
    ("car @who washes", "washed {n}", "car"),
    ("day of delivering newspapers", "did this on {n}", "day"),
    ("lesson @who gives", "gave {n}", "lesson"),
    ("yard @who rakes", "raked {n}", "yard"),
    ("fence @who paints", "painted {n}", "fence"),
    ("hour of work on a farm", "worked for {n}", "hour"),
    ("house @who cleans", "cleaned {n}", "house"),
    ("basket of berries @who picks", "picked {n}", "basket"),
    ("letter @who translates", "translated {n}", "letter"),
)
WISHES = things("bicycle, skateboard, guitar, tent, telescope, camera, jacket, phone, pair of skates, desk lamp, drum")
COINS = (("penny/pennies", 1), ("nickel", 5), ("dime", 10), ("quarter", 25))
BILLS = (5, 10, 20, 50, 100, 200, 500)
SHOWS = ("the zoo", "a concert", "the museum", "the swimming pool", "a play", "the circus", "a soccer match")
EXPENSES = (
    "lunch",
    "a book",
    "a bus ticket",
    "a gift",
    "a T-shirt",
    "groceries",
    "a movie",
    "a haircut",
    "shoes",
    "a plant",
)


def shopping(story: Story, steps: int) -> None:
    """Some of this and some of that: the total, the change, what is missing, what each pays."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about.add("money")
    where, goods = draw.pick(SHOPS)
    ending = draw.pick(["", "change", "missing", "split", "coupon"]) if steps > 1 else ""
    lines = steps - (1 if ending else 0)
    kinds, many = _shopping_list(story, lines)
    costs: list[Number] = []
    bought = draw.some(goods, kinds)
    texts = []
    for place, (item, low, high) in enumerate(bought):
        price, count = draw.price(low, high), draw.few() if place < many else 1
        if count > 1:
            texts.append((f"{story.some(count, item)} for {story.dollars(price)} each", count, price, item))
        else:
            texts.append((f"a {item.one} for {story.dollars(price)}".replace("a a", "an a"), 1, price, item))
    draw_order = draw.some(texts, len(texts))
    story.tell(f"{where}, @who buys {_listed([text for text, *_ in draw_order])}", who)
    for _, count, price, item in draw_order:
        costs.append(price if count == 1 else story.times(count, price, DOLLAR, f"for the {item.many}"))
    total = story.sum(costs, DOLLAR, "in all") if len(costs) > 1 else costs[0]
    story.shape.append(f"{kinds}kinds{many}many")
    if ending:
        story.shape.append(ending)
    _pay(story, who, ending, total)


def _shopping_list(story: Story, lines: int) -> tuple[int, int]:
    """How many kinds of things, and how many of these more than once: many + (kinds - 1) lines."""
    choices = [(kinds, lines - kinds + 1) for kinds in (1, 2, 3, 4) if 0 <= lines - kinds + 1 <= kinds]
    return story.draw.pick(choices)


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _pay(story: Story, who: Person, ending: str, total: Number) -> None:
    draw = story.draw
    match ending:
        case "change":
            bill = draw.pick([bill for bill in BILLS if total < bill <= total * 4])
            story.tell(f"@who pays with a {story.dollars(bill)} bill", who)
            story.ask(draw.pick(("how much change does @who get", "how much money does @who get back")), who)
            story.minus(bill, total, DOLLAR, "back")
        case "missing":
            has = draw.below(total, 1)
            story.tell(f"@who has only {story.dollars(has)}", who)
            story.ask("how much more money does @who need", who)
            story.minus(total, has, DOLLAR, "missing")
        case "split":
            friends = draw.divisor(total, 8)
            story.tell(f"the cost is split equally among {story.say(friends)} {crowd(draw)}")
            story.ask("how much does each of them pay")
            story.over(total, friends, DOLLAR, "for each of them")
        case "coupon":
            off = draw.integer(1, int(total) // 2)
            story.tell(f"a coupon takes {story.dollars(off)} off the total")
            story.ask("how much does @who pay", who)
            story.minus(total, off, DOLLAR, "to pay")
        case _:
            story.ask(draw.pick(("how much does @who pay", "how much money does @who spend in total")), who)


def earning(story: Story, steps: int) -> None:
    """Pay for work, and what becomes of it."""
    draw = story.draw
    who = people(draw, 1)[0]
    each, did, word = draw.pick(JOBS)
    unit = thing(word)
    pay, count = draw.price(3, 18), draw.few()
    story.about |= {"time", "money"}
    story.tell(f"@who {draw.pick(('earns', 'gets', 'is paid'))} {story.dollars(pay)} for each {each}", who)
    if steps == 1 and draw.chance(0.4):
        story.shape.append("how_many")
        story.ask(f"how many {unit.many} does it take @him to earn {story.dollars(pay * count)}", who)
        story.over(pay * count, pay, unit)
        return
    did = did.format(n=story.some(count, unit))
    story.tell(f"{draw.pick(('this week,', 'last month,', 'yesterday,'))} @who {did}", who)
    money = story.times(count, pay, DOLLAR, f"for {count} {unit.of(count)}")
    story.ask("how much did @who earn", who)
    reasons = draw.some(EXPENSES, steps)
    for reason in reasons[1:]:
        money = _after_earning(story, who, money, reason)
    if steps > 1:
        story.ask(draw.pick(("how much money does @who have now", "how many dollars does @who have then")), who)


def _after_earning(story: Story, who: Person, money: Number, reason: str) -> Number:
    draw = story.draw
    kind = draw.pick(("tip", "had", "spent", "spent")) if "half" in story.shape else draw.pick(("tip", "spent", "half"))
    story.shape.append(kind)
    match kind:
        case "tip":
            more = draw.price(2, 20)
            story.tell(f"@who also gets {story.dollars(more)} as a {draw.pick(('tip', 'bonus', 'reward'))}", who)
            return story.plus(money, more, DOLLAR, "in all")
        case "had":
            more = draw.price(2, 60)
            story.tell(f"@who finds {story.dollars(more)} in an old coat", who)
            return story.plus(money, more, DOLLAR, "in all")
        case "half":
            story.tell(f"@who gives half of the money to @his {draw.pick(('parents', 'family', 'cousins'))}", who)
            return story.over(money, 2, DOLLAR, "left")
    less = draw.below(money, 1)
    story.tell(f"@who spends {story.dollars(less)} on {reason}", who)
    return story.minus(money, less, DOLLAR, "left")


def saving(story: Story, steps: int) -> None:
    """Something is wanted, some money is there: what is missing, and how long it takes."""
    draw = story.draw
    who = people(draw, 1)[0]
    wish = draw.pick(WISHES)
    story.about |= {"money", "time"}
    weekly, weeks = draw.integer(2, 15), draw.few()
    goal = weekly * weeks if steps != 1 else draw.count(20)
    week = draw.pick((Thing("week", "weeks"), Thing("month", "months"), Thing("day", "days")))
    if steps == 1:
        has = draw.below(goal, 2)
        story.tell(f"@who wants to buy a {wish.one} that costs {story.dollars(goal)}", who)
        story.tell(f"@who has saved {story.dollars(has)}", who)
        story.ask("how much more does @who need to save", who)
        story.minus(goal, has, DOLLAR, "missing")
        return
    has = draw.integer(3, 60)
    gift = draw.integer(3, 40) if steps == 3 else 0
    price: Number = goal + has + gift
    story.tell(f"@who wants to buy a {wish.one} that costs {story.dollars(price)}", who)
    story.tell(f"@who has already saved {story.dollars(has)}", who)
    price = story.minus(price, has, DOLLAR, "missing")
    if gift:
        story.shape.append("gift")
        giver = draw.pick(("grandmother", "uncle", "aunt", "cousin"))
        story.tell(f"@his {giver} gives @him {story.dollars(gift)}", who)
        price = story.minus(price, gift, DOLLAR, "missing")
    story.tell(f"@who can save {story.dollars(weekly)} every {week.one}", who)
    story.ask(f"how many {week.many} does @who need to save for the rest", who)
    story.over(price, weekly, week)


def profit(story: Story, steps: int) -> None:
    """Bought at one price and sold at another."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about.add("money")
    _, goods = draw.pick(SHOPS)
    item, low, high = draw.pick(goods)
    cost = draw.price(low, high)
    price = cost + draw.price(1, high)
    if steps == 1:
        a = "an" if item.one[0] in "aeiou" else "a"
        story.tell(f"@who bought {a} {item.one} for {story.dollars(cost)} and sold it for {story.dollars(price)}", who)
        story.ask("how much profit did @who make", who)
        story.minus(price, cost, DOLLAR, "of profit")
        return
    count = draw.few(3)
    story.tell(f"@who bought {story.some(count, item)} for {story.dollars(cost)} each", who)
    if steps == 2:
        story.tell(f"@who sold all of the {item.many} for {story.dollars(price)} each", who)
        story.ask("how much profit did @who make", who)
        story.times(story.minus(price, cost, DOLLAR, f"of profit for one {item.one}"), count, DOLLAR, "of profit")
        return
    story.shape.append("some")
    sold = draw.integer(2, count - 1)
    story.tell(f"@who sold {story.say(sold)} of the {item.many} for {story.dollars(price * 2)} each", who)
    paid = story.times(count, cost, DOLLAR, "paid")
    got = story.times(sold, price * 2, DOLLAR, "received")
    story.ask("how much more money did @who receive than pay", who)
    story.minus(got, paid, DOLLAR, "of profit")


def unit_price(story: Story, steps: int) -> None:
    """So many cost so much: one, or others, or how many for so much."""
    draw = story.draw
    _, goods = draw.pick(SHOPS)
    item, low, high = draw.pick(goods)
    price, count = draw.price(low, high), draw.few()
    story.tell(
        draw.pick(
            (
                f"{story.some(count, item)} cost {story.dollars(count * price)}",
                f"the price of {story.some(count, item)} is {story.dollars(count * price)}",
            )
        )
    )
    one = story.over(count * price, count, DOLLAR, f"for one {item.one}")
    if steps == 1:
        story.ask(f"how much does one {item.one} cost")
        return
    others = draw.pick([number for number in range(2, 13) if number != count])
    if draw.chance(0.6):
        story.shape.append("others")
        story.ask(f"how much do {story.some(others, item)} cost")
        story.times(one, others, DOLLAR, f"for {others} {item.many}")
    else:
        story.shape.append("how_many")
        story.ask(f"how many {item.many} can be bought for {story.dollars(one * others)}")
        story.over(one * others, one, item)


def coins(story: Story, steps: int) -> None:
    """The worth of coins, in cents."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about.add("money")
    if steps == 1:
        word, cents = draw.pick(COINS[1:])
        coin, count = thing(word), draw.few()
        story.tell(f"@who has {story.some(count, coin)}, and a {coin.one} is worth {story.some(cents, CENT)}", who)
        story.ask("how many cents does @who have", who)
        story.times(count, cents, CENT)
        return
    worths: list[Number] = []
    for word, cents in draw.some(COINS[1:], 2):
        coin, count = thing(word), draw.few()
        story.tell(f"@who has {story.some(count, coin)} of {story.some(cents, CENT)} each", who)
        worths.append(story.times(count, cents, CENT, f"in {coin.many}"))
    story.ask("how many cents does @who have in all", who)
    total = story.plus(worths[0], worths[1], CENT, "in all")
    if steps == 4:
        story.shape.append("spent")
        spent = draw.below(total, 5)
        story.tell(f"@who spends {story.some(spent, CENT)}", who)
        story.ask("how many cents does @who have left", who)
        story.minus(total, spent, CENT, "left")


def wallet(story: Story, steps: int) -> None:
    """Money that is spent and got: what is left, what was there at first, or what something cost."""
    draw = story.draw
    who = people(draw, 1)[0]
    story.about.add("money")
    kind = draw.pick(("left", "first") if steps > 1 else ("left", "first", "cost"))
    story.shape.append(kind)
    start = draw.price(20, max(30, draw.level.largest // 2))
    verb = draw.pick(("has", "takes", "gets"))
    told = f"@who {verb} {story.dollars(start)}{' to the market' if verb == 'takes' else ''}"
    story.tell("@who has some money" if kind == "first" else told, who)
    changes: list[tuple[str, Number]] = []
    value, reasons = start, draw.some(EXPENSES, steps)
    for place in range(steps):
        if place and draw.chance(0.35):
            amount = draw.price(2, 40)
            source = draw.pick(("a friend gives @him back", "@his father gives @him", "@who finds"))
            story.tell(f"{source} {story.dollars(amount)}", who)
            changes.append(("+", amount))
            value = value + amount
            continue
        if value <= 2:
            raise Unfit
        amount = draw.price(1, int(value) - 1)
        if amount >= value:
            raise Unfit
        if kind == "cost":
            story.tell(f"after paying for {reasons[place]}, @who has {story.dollars(value - amount)} left", who)
            story.ask(f"how much did @who pay for {reasons[place]}", who)
            story.minus(value, value - amount, DOLLAR, f"for {reasons[place]}")
            return
        story.tell(f"@who spends {story.dollars(amount)} on {reasons[place]}", who)
        changes.append(("-", amount))
        value = value - amount
    story.shape.append("".join(sign for sign, _ in changes))
    if kind == "left":
        story.ask("how much money does @who have left", who)
        value = start
        for sign, amount in changes:
            work, tail = (story.plus, "in all") if sign == "+" else (story.minus, "left")
            value = work(value, amount, DOLLAR, tail)
        return
    story.tell(f"now @who has {story.dollars(value)} left", who)
    story.ask("how much money did @who have at first", who)
    for sign, amount in reversed(changes):
        value = (story.minus if sign == "+" else story.plus)(value, amount, DOLLAR, "before that")


def tickets(story: Story, steps: int) -> None:
    """Tickets of two prices."""
    draw = story.draw
    story.about |= {"people", "age"}
    show = draw.pick(SHOWS)
    adult, child = draw.price(6, 20), draw.price(2, 8)
    adults, children = draw.integer(2, 6), draw.few()
    if adult <= child:
        raise Unfit
    story.tell(f"a ticket for {show} costs {story.dollars(adult)} for adults and {story.dollars(child)} for children")
    story.tell(f"a group of {story.say(adults)} adults and {story.say(children)} children wants to go")
    for_adults = story.times(adults, adult, DOLLAR, "for the adults")
    for_children = story.times(children, child, DOLLAR, "for the children")
    total = story.plus(for_adults, for_children, DOLLAR, "in all")
    story.ask("how much do all the tickets cost")
    if steps == 4:
        story.shape.append("change")
        bill = draw.pick([bill for bill in BILLS if total < bill <= total * 4])
        story.tell(f"the group pays with {story.dollars(bill)}")
        story.ask("how much money does the group get back")
        story.minus(bill, total, DOLLAR, "back")


def fares(story: Story, steps: int) -> None:
    """A fixed part and a part for each mile, day or hour."""
    draw = story.draw
    story.about |= {"length", "time"}
    what, one, many = draw.pick(
        (
            ("a taxi", "mile", "miles"),
            ("a plumber", "hour", "hours"),
            ("a rented bicycle", "day", "days"),
            ("a rented boat", "hour", "hours"),
            ("a moving van", "mile", "miles"),
            ("a band", "hour", "hours"),
        )
    )
    unit = Thing(one, many)
    fixed, rate, count = draw.price(3, 30), draw.price(2, 15), draw.few()
    story.tell(f"{what} costs {story.dollars(fixed)} plus {story.dollars(rate)} for each {one}")
    total = fixed + count * rate
    if steps == 2 and draw.chance(0.4):
        story.shape.append("how_many")
        story.tell(f"a customer pays {story.dollars(total)} in all")
        story.ask(f"how many {many} was it for")
        story.over(story.minus(total, fixed, DOLLAR, f"for the {many}"), rate, unit)
        return
    story.ask(f"how much does it cost for {story.some(count, unit)}")
    cost = story.plus(story.times(count, rate, DOLLAR, f"for {count} {many}"), fixed, DOLLAR, "in all")
    if steps == 3:
        story.shape.append("split")
        friends = draw.divisor(cost, 6)
        story.tell(f"{story.say(friends)} {crowd(draw)} share the cost for {story.some(count, unit)} equally")
        story.ask("how much does each of them pay")
        story.over(cost, friends, DOLLAR, "for each of them")


SCENES = (
    Scene("shopping", shopping, (1, 2, 3, 4, 5, 6), weight=4),
    Scene("earning", earning, (1, 2, 3, 4), weight=2),
    Scene("saving", saving, (1, 2, 3)),
    Scene("profit", profit, (1, 2, 3)),
    Scene("unit_price", unit_price, (1, 2)),
    Scene("coins", coins, (1, 3, 4)),
    Scene("wallet", wallet, (1, 2, 3, 4, 5), weight=2),
    Scene("tickets", tickets, (3, 4)),
    Scene("fares", fares, (2, 3)),
)
