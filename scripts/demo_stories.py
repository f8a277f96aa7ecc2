"""Seeded generator of small English stories with exact log-probabilities.

The stories are the training and evaluation text of the demo model in tests/data/demo. Every random choice is
made through Teller.pick or Teller.chance, which add -ln p to Teller.nll, so the entropy of a text under the
generator is known. People, treats and tools keep fixed facts across all stories; names, colours, places, lists
and secret words stay consistent inside one story.
"""

import math
import random
import re

PEOPLE = [row.split("|") for row in """
Mia|she|girl|the old mill|honey cakes
Tom|he|boy|the red farm|apple pie
Lily|she|girl|the house with the green door|plum jam
Ben|he|boy|the baker's shop|warm bread
Anna|she|girl|the cottage by the bridge|pear soup
Sam|he|boy|the tall house on the corner|cherry tarts
Nora|she|girl|the lighthouse|lemon biscuits
Finn|he|boy|the boat shed|fried fish
Ella|she|girl|the flower shop|berry juice
Max|he|boy|the stone tower|roast corn
Rosa|she|girl|the little inn|rice pudding
Oscar|he|boy|the clock maker's house|nut bread
Ruby|she|fox|the den under the hill|blackberries
Felix|he|fox|the hollow log|cheese pies
Hazel|she|squirrel|the nest in the oak|hazelnuts
Pip|he|mouse|the hole behind the stove|cheese crumbs
Dot|she|mouse|the teapot on the shelf|sugar lumps
Bruno|he|bear|the dark cave|wild honey
Olga|she|bear|the warm cave by the falls|salmon
Otto|he|owl|the church tower|poppy seed rolls
Wanda|she|owl|the hollow elm|oat cakes
Hugo|he|hedgehog|the leaf pile|red apples
Greta|she|goose|the reeds by the pond|fresh clover
Percy|he|pig|the muddy yard|turnip stew
Clara|she|cat|the blue chair by the fire|cream
Jasper|he|cat|the sunny window|buttered toast
Rex|he|dog|the kennel by the gate|meat pies
Bella|she|dog|the little school|bacon
Daisy|she|cow|the long meadow|sweet hay
Henry|he|horse|the stable on the hill|carrots
Willow|she|rabbit|the burrow near the fence|lettuce leaves
Leo|he|rabbit|the hole in the garden wall|radishes
Ivy|she|frog|the lily pond|mint tea
Freddy|he|frog|the old well|pea soup
Luna|she|badger|the tunnel in the wood|mushroom pie
Barney|he|badger|the room below the roots|potato cakes
""".strip().splitlines()]

COLOURS = "red blue green yellow white purple silver golden brown pink".split()

# object|what it does|what breaks|tool that mends it
OBJECTS = [row.split("|") for row in """
kite|danced high above the roofs|its tail was torn|needle and thread
boat|sailed across the water like a swan|its mast was broken|glue
drum|went boom, boom, boom|its skin had a hole|a patch of leather
lantern|shone like a small moon|its glass was cracked|new glass
ball|bounced over the wall and back|it had lost all its air|a pump
bell|rang clear and sweet|its rope was gone|a strong rope
hat|kept the rain away|its brim was ripped|needle and thread
scarf|was as soft as a cloud|it had come undone|wool
wagon|rolled along with a happy squeak|its wheel was loose|a hammer
whistle|sang like a bird|it was full of sand|a thin brush
spoon|stirred the soup all by itself|its handle was bent|a hammer
book|was full of pictures of the sea|its pages had come loose|glue
clock|said tick, tock, tick, tock|its spring was stuck|a drop of oil
umbrella|opened like a flower|one of its ribs was broken|wire
flute|played a slow and gentle tune|it would not make a sound|a thin brush
basket|could hold a hundred eggs|its bottom had a hole|straw
mitten|was warm even in the snow|its thumb had a hole|wool
puppet|could bow and wave|its strings were in a knot|patience
""".strip().splitlines()]

# place|detail that belongs to it
PLACES = [row.split("|") for row in """
under the old oak|where the roots made little rooms
by the river|where the water ran over round stones
behind the barn|where the hay smelled sweet
on the hill|where the wind never slept
in the garden|where the bees hummed all day
at the market|where everyone talked at once
near the pond|where the dragonflies danced
on the bridge|where the boards creaked
in the pine wood|where the light was green
at the edge of the field|where the poppies grew
beside the well|where the moss was thick
on the beach|where the waves whispered
in the attic|where the dust lay like snow
behind the school|where the swings hung still
under the stairs|where a small spider lived
at the crossroads|where the signpost leaned
""".strip().splitlines()]

WEATHER = [
    ("sunny", "The sun was warm and the sky was wide.", "The sun was still shining"),
    ("windy", "The wind pulled at every door.", "The wind was still blowing"),
    ("rainy", "Rain tapped on the roofs.", "The rain was still falling"),
    ("snowy", "Snow lay on every branch.", "The snow was still deep"),
    ("misty", "Mist hung over the path.", "The mist was still thick"),
]

WORDS = ("apple moon river button feather candle pepper winter marble thimble ladder pumpkin acorn ribbon "
         "pebble shadow cricket harbour window thunder").split()
TOOLS = [row.split("|") for row in """
rope|climbed down the steep rocks with
lamp|found the way through the dark tunnel with
blanket|slept under the stars in
loaf of bread|fed the hungry ducks with
map|chose the right road with
drum|woke the sleeping ferryman with
shovel|dug a path through the snow with
mirror|sent a flash of light across the valley with
net|caught a silver fish with
jar|carried sweet spring water in
""".strip().splitlines()]
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
FRUIT = "apples pears plums cherries nuts eggs buns carrots".split()
TRAITS = ["kind", "brave", "curious", "quiet", "cheerful", "careful", "clever", "patient"]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ADJECTIVES = ("old little grey sleepy happy fat tiny lazy thin noisy shy proud black white hungry wet merry young "
              "lonely round").split()
ANIMALS = ("bird cat crow bee goat duck snail dog beetle hen sheep moth lamb spider sparrow donkey robin mole swan "
           "pigeon").split()
ACTIONS = "sang slept sat danced waited hid rested yawned looked_up hummed stood_still played called".split()
SPOTS = ["on the roof", "in the grass", "by the gate", "under a leaf", "on the wall", "in a tree", "near the road",
         "behind a stone", "on the fence", "in the shade", "beside a flower", "at the window", "in the corn",
         "under the hedge", "on a stump", "by the ditch"]
SMELLS = ("rain hay smoke bread flowers moss mint wood honey salt roses tea soup wool earth apples").split()
GOOD = "fine lovely strange long quiet good grand busy sweet lucky funny bright slow".split()
CHOICE = re.compile(r"\[([^\]]*)\]")


def article(word):
    """The word with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


class Teller:
    """Tells one story; nll holds the summed -ln p of the choices made so far."""

    def __init__(self, rng, **fixed):
        self.rng, self.fixed, self.nll = rng, fixed, 0.0
        self.slots, self.parts, self.used = {}, [], []

    def pick(self, options):
        """A uniform choice."""
        self.nll += math.log(len(options))
        return options[self.rng.randrange(len(options))]

    def skew(self, options):
        """A choice with weights falling as 1 / (rank + 1)."""
        total = sum(1.0 / (i + 1) for i in range(len(options)))
        index = self.rng.choices(range(len(options)), [1.0 / (i + 1) for i in range(len(options))])[0]
        self.nll += math.log(total * (index + 1))
        return options[index]

    def chance(self, p):
        """True with probability p."""
        hit = self.rng.random() < p
        self.nll -= math.log(p if hit else 1.0 - p)
        return hit

    def given(self, key, options):
        """A choice that the caller of story() may have fixed beforehand, at no cost in nats."""
        return self.fixed[key] if key in self.fixed else self.pick(options)

    def expand(self, text):
        """The text with each [a/b/c] decided and each {slot} filled."""
        text = CHOICE.sub(lambda m: self.skew(m.group(1).split("/")), text)
        return text.format(**self.slots)

    def say(self, *options):
        """Appends one of the sentences to the current paragraph."""
        self.parts.append(self.expand(self.skew(options)))

    def creature(self):
        """Some animal with an adjective."""
        return article(self.skew(ADJECTIVES) + " " + self.skew(ANIMALS))

    def scene(self):
        """One sentence of scenery."""
        kind = self.pick(range(5))
        if kind == 0:
            text = f"{self.creature().capitalize()} {self.skew(ACTIONS)} {self.skew(SPOTS)}."
        elif kind == 1:
            text = f"Somewhere {self.creature()} {self.skew(ACTIONS)}."
        elif kind == 2:
            text = f"{{H}} {self.pick(['hummed', 'sang'])} a song about {self.creature()} {self.skew(SPOTS)}."
        elif kind == 3:
            text = f'"What a {self.skew(GOOD)} {self.pick(["day", "story", "world"])}," {self.pick(["said", "thought"])} {{H}}.'
        else:
            first = self.skew(SMELLS)
            text = f"The air smelled of {first} and {self.skew([s for s in SMELLS if s != first])}."
        self.parts.append(text.replace("_", " ").format(**self.slots))

    def break_paragraph(self):
        """A new paragraph, sometimes after a sentence of scenery."""
        if self.chance(0.6):
            self.scene()
        self.parts.append("\n")

    def text(self):
        return re.sub(r" ?\n ?", "\n", " ".join(self.parts))

    def person(self, key, name_key=None):
        """Brings a person not seen before into the story under the slot prefix key."""
        free = [p for p in PEOPLE if p[0] not in self.used]
        row = self.fixed.get(name_key) or self.pick(free)
        name, he, kind, home, treat = row
        self.used.append(name)
        him, his = ("him", "his") if he == "he" else ("her", "her")
        self.slots.update({key: name, key + "he": he, key + "him": him, key + "his": his,
                           key + "He": he.capitalize(), key + "His": his.capitalize(), key + "kind": kind,
                           key + "akind": article(kind), key + "home": home, key + "treat": treat, "cap" + key + "treat": treat.capitalize()})
        return row

    def thing(self):
        """The object of the story with its colour."""
        row = self.given("object", OBJECTS)
        colour = self.given("colour", COLOURS)
        self.slots.update(o=row[0], c=colour, O=f"{colour} {row[0]}", aO=article(f"{colour} {row[0]}"), does=row[1],
                          broke=row[2], tool=row[3])

    def place(self, key):
        """A place not used before, with its detail."""
        row = self.pick([p for p in PLACES if p[0] not in self.slots.values()])
        self.slots.update({key: row[0], key + "d": row[1], "cap" + key: row[0].capitalize()})


def opening(t):
    """Introduces the hero H, the day and the home."""
    t.person("H", "hero")
    t.slots["trait"] = t.pick(TRAITS)
    t.slots["w"], t.slots["sky"], t.slots["still"] = t.pick(WEATHER)
    t.say("Once upon a time there was a {trait} [/little /young ]{Hkind} [named/called] {H}.",
          "Early one morning, {H} the {Hkind} [woke up/opened the window].",
          "In {Hhome} lived a {trait} {Hkind} [called/named] {H}.",
          "{H} was {trait}, and everyone in the village [knew it/said so].")
    if t.chance(0.6):
        t.say("{H} lived in {Hhome} and loved {Htreat}.", "{HHe} loved {Htreat} more than anything else.")
    t.say("It was a {w} [day/morning]. {sky}", "{sky}")


def closing(t, lesson):
    """Ends the story."""
    if t.chance(0.5):
        t.say(*lesson)
    t.say("That [night/evening], {H} [slept/rested] in {Hhome} and dreamed of {dream}.",
          "{still}, but {H} did not mind at all.",
          "And {H} shared a plate of {Htreat} with {F}.",
          "From that day on, {H} and {F} were [good/best] friends.")


def plot_lost(t):
    """The object is lost, two friends are asked, and it is found where the second one said."""
    t.thing()
    t.place("P")
    t.say("{HHe} had {aO}. The {o} {does}.", "[{HHe}/Every day {Hhe}] played with {Hhis} {O}. The {o} {does}.")
    t.say("[But that day/Then one day], the {o} was gone.", "[But/Then] {Hhe} lost the {o} on the way home.")
    t.break_paragraph()
    t.person("G")
    t.say('{H} [ran/walked/went] to {Ghome} and [asked/said], "{G}, have you seen my {O}?"',
          'First {Hhe} [met/found] {G} the {Gkind}. "Have you seen my {O}?" [asked/cried] {H}.')
    t.say('"No," said {G}, "I have only been [eating/making] {Gtreat} today."',
          '"I am sorry," said {G}. "I have [not seen it/seen nothing]."')
    t.break_paragraph()
    t.person("F")
    t.say("[Then/Next] {Hhe} [went/hurried/ran] to {Fhome}, where {F} the {Fkind} lived.",
          "[Then/After that] {Hhe} [met/saw] {F} the {Fkind}, who was carrying {Ftreat}.")
    t.say('"I saw {aO} {P}," said {F}. "[Come with me/Let us look/Follow me]!"',
          '"Look {P}," said {F}. "I saw something {c} there [today/this morning]."')
    t.break_paragraph()
    t.say("[So they went together/They walked a long way/Off they went], and {P}, {Pd}, they [found/saw] the {O}.",
          "They looked {P}, {Pd}. There [was/lay] the {O}!")
    t.say('"[Thank you/Oh, thank you], {F}!" said {H}. "You are a [true/good/dear] friend."',
          "{H} [hugged/thanked] {F} and [laughed/smiled/danced] with joy.")
    t.slots["dream"] = t.expand("the {O} {P}")
    t.slots["plan"] = t.expand("{H} loses the {O}. {G} has not seen it. {F} knows that it is {P}.")
    closing(t, ["A good friend helps you look.", "What is lost can be found with a friend."])


def plot_mend(t):
    """The object breaks and a friend mends it with the tool that belongs to it."""
    t.thing()
    t.place("P")
    t.say("{H} took {Hhis} {O} and played {P}, {Pd}. The {o} {does}.",
          "{HHe} was [proud of/happy with] {Hhis} {O}, because it {does}.")
    t.say("[But/Then] {Hhe} [fell/slipped/tripped] over a [stone/"
          "root/branch], and {broke}.",
          "[Suddenly/All at once] there was a [crack/loud noise]. {H} [looked/stared] at the {o}: {broke}.")
    t.break_paragraph()
    t.person("F")
    t.say("{H} [sat down and cried/began to cry/was very sad]. {F} the {Fkind} [heard/saw] {Hhim} and came [closer/near].",
          "{H} [carried/took] the {o} to {Fhome}, the home of {F} the {Fkind}.")
    t.say('"[Do not worry/Do not cry]," said {F}. "We can mend it with {tool}."',
          '"I know what to do," said {F}. "All we need is {tool}."')
    t.say("They worked [all afternoon/until noon/for an hour], and {F} sang a song about {Ftreat}.",
          "They [worked side by side/took turns] while the {Ftreat} [cooled/waited] on the table.")
    t.break_paragraph()
    t.say("[At last/Soon] the {O} was [whole again/as good as new], and it {does}.",
          "Thanks to {tool}, the {O} was [mended/whole again].")
    t.slots["dream"] = t.expand("{tool}")
    t.slots["plan"] = t.expand("The {O} of {H} breaks, because {broke}. {F} mends it with {tool}.")
    closing(t, ["Broken things can be mended.", "Two pairs of hands are better than one."])


def plot_gift(t):
    """A birthday gift that must fit what the friend loves."""
    t.person("F")
    t.slots["day"] = t.pick(DAYS)
    t.say("On {day} it would be the birthday of {F} the {Fkind}.", "{HHis} friend {F} the {Fkind} had a birthday on {day}.")
    t.say('"What does {F} love most?" [thought/wondered] {H}. "[Of course/I know], {Ftreat}!"',
          "{H} knew that {F} loved {Ftreat}, so {Hhe} wanted to bring some.")
    t.break_paragraph()
    t.thing()
    t.person("G")
    t.say('But there were no {Ftreat} left in {Hhome}. "[You can have mine/I have some]," said {G} the {Gkind}, "if you lend me your {O}."',
          '{G} the {Gkind} had a bowl of {Ftreat}. "I will [trade/swap] it for your {O}," said {G}.')
    t.say("It was hard to [give away/part with] the {o}, for it {does}, but {H} [nodded/said yes/agreed].",
          '"[All right/Agreed]," said {H}, and gave {Ghim} the {O}.')
    t.break_paragraph()
    t.say("On {day}, {H} [walked/went] to {Fhome} with the {Ftreat}.", "When {day} came, {H} knocked [softly/twice] at {Fhome}.")
    t.say('"{capFtreat}! My favourite!" [cried/shouted] {F}.', "{F} [jumped/danced] for joy when {Fhe} saw the {Ftreat}.")
    if t.chance(0.5):
        t.say('And {G} came too, and brought back the {O}. "A gift for a gift," said {G}.',
              'Then {G} came in and [gave/handed] the {O} back to {H}. "I only wanted to borrow it," {Ghe} said.')
    t.slots["dream"] = t.expand("{Ftreat}")
    t.slots["plan"] = t.expand("{F} has a birthday on {day} and loves {Ftreat}. {H} gives the {O} to {G} for them.")
    closing(t, ["The best gifts come from the heart.", "Giving is better than having."])


def plot_count(t):
    """A basket of fruit is given away bit by bit, with right arithmetic."""
    t.slots["fruit"] = t.pick(FRUIT)
    total, first = t.pick(range(7, 13)), t.pick(range(1, 4))
    second = t.pick(range(1, 3))
    t.slots.update(n=NUMBERS[total], a=NUMBERS[first], b=NUMBERS[second], r=NUMBERS[total - first],
                   s=NUMBERS[total - first - second])
    t.place("P")
    t.say("{H} had a basket with {n} {fruit}.", "{HHe} [picked/found/gathered] {n} {fruit} {P}.")
    t.break_paragraph()
    t.person("G")
    t.say('On the road {Hhe} met {G} the {Gkind}. "I am [so hungry/very hungry]," said {G}. So {H} gave {Ghim} {a}.',
          "At {Ghome}, {G} the {Gkind} was [hungry/sad], so {H} gave {Ghim} {a}.")
    t.say("Now there were {r} {fruit} in the basket.", "That left {r}.")
    t.break_paragraph()
    t.person("F")
    t.say("[Then/Next] {F} the {Fkind} came [along/by] and asked for {b}. {H} [smiled/nodded] and gave {Fhim} {b} of the {fruit}.",
          "A little later {Hhe} [passed/came to] {Fhome} and left {b} of the {fruit} at the door for {F} the {Fkind}.")
    t.say("{H} counted again: {s} {fruit}.", '"Now I have {s} {fruit}," said {H}.')
    t.break_paragraph()
    t.say("In the evening {G} brought {Gtreat} and {F} brought {Ftreat}, and they [ate/feasted] together.",
          "{G} and {F} [came to/visited] {Hhome} and thanked {H} for the {fruit}.")
    t.slots["dream"] = t.expand("{n} {fruit}")
    t.slots["plan"] = t.expand("{H} has {n} {fruit}: {a} for {G}, {b} for {F}, and {s} are left.")
    closing(t, ["Sharing makes a small basket big.", "The more you give, the more friends you have."])


def plot_door(t):
    """Three secret words open a door; they are told, forgotten and remembered."""
    words = []
    for _ in range(3):
        words.append(t.pick([w for w in WORDS if w not in words]))
    t.slots["pass"] = ", ".join(words)
    t.slots["cappass"] = t.slots["pass"].capitalize()
    t.slots["w1"], t.slots["w3"] = words[0], words[2]
    t.place("P")
    t.thing()
    t.say("{HHe} found a small door {P}, {Pd}.", "{capP}, {Pd}, {Hhe} [found/saw] a [small/tiny/round] door.")
    t.say('On the door was written: "{pass}."', 'A [voice/whisper] said, "The words are {pass}."')
    t.break_paragraph()
    t.person("F")
    t.say("{H} ran to {Fhome} to [tell/fetch] {F} the {Fkind}.", "{HHe} went home and told {F} the {Fkind} about it.")
    t.say("The next [day/morning], they [stood/came] before the door, but {H} had [forgotten/lost] the words.",
          "But when they came back, the writing was gone, and {H} [could not remember/had forgotten] it.")
    t.say('"I [know/remember] the first one," said {F}. "It was {w1}."',
          '"The last word was {w3}," said {F}. "I am sure of it."')
    t.break_paragraph()
    t.say('{H} [closed {Hhis} eyes/took a deep breath] and said, "{cappass}!"', 'Then {H} [cried/called/shouted], "{cappass}!"')
    t.say("The door [opened/swung open], and inside lay {aO}. The {o} {does}.",
          "[Slowly/Softly] the door opened. Behind it they found {aO}.")
    t.slots["dream"] = t.expand("{pass}")
    t.slots["plan"] = t.expand("{H} and {F} find a door {P}. The words are {pass}. Inside is {aO}.")
    closing(t, ["Good friends remember for each other.", "Some doors open only for two."])


def plot_journey(t):
    """Three packed things are each used, in the order of packing."""
    rows = []
    for _ in range(3):
        rows.append(t.pick([r for r in TOOLS if r not in rows]))
    for key, row in zip("xyz", rows):
        t.slots[key], t.slots["a" + key], t.slots["use" + key] = row[0], article(row[0]), row[1]
    t.person("F")
    t.say("{H} wanted to visit {F} the {Fkind}, who lived far away in {Fhome}.",
          "A letter came from {F} the {Fkind}: \"Come to {Fhome}! There will be {Ftreat}.\"")
    t.say("{HHe} packed {ax}, {ay} and {az}.", "So {Hhe} put {ax}, {ay} and {az} into a bag.")
    t.break_paragraph()
    t.say("On the first day {Hhe} {usex} the {x}.", "First {Hhe} {usex} the {x}.")
    t.say("On the second day {Hhe} {usey} the {y}.", "Then {Hhe} {usey} the {y}.")
    t.say("On the third day {Hhe} {usez} the {z}.", "At last {Hhe} {usez} the {z}.")
    t.break_paragraph()
    t.say('"You came all this way!" [cried/said] {F}. They ate {Ftreat} and [talked/laughed/sang] [all night/until late].',
          "{F} [opened the door/was waiting] and [hugged/kissed] {Hhim}. There was a big plate of {Ftreat} on the table.")
    t.say("{H} told {Fhim} about the {x}, the {y} and the {z}.", '"I could not have come without the {x}, the {y} and the {z}," said {H}.')
    t.slots["dream"] = t.expand("{ay}")
    t.slots["plan"] = t.expand("{H} travels to {Fhome} to see {F}. {HHe} packs {ax}, {ay} and {az}.")
    closing(t, ["A long road is short when a friend waits at the end.", "Pack well and fear nothing."])


def plot_race(t):
    """A proud rival stops for a treat and loses the race."""
    t.person("F")
    t.place("P")
    t.person("G")
    t.thing()
    t.say('"I am the fastest of all," said {G} the {Gkind}. "Who will race me?"',
          "{G} the {Gkind} [laughed/boasted], \"Nobody is as fast as I am.\"")
    t.say('"I will," said {H}. The prize was {aO}.', "{H} wanted to [try/race], for the prize was {aO}.")
    t.break_paragraph()
    t.say("They started {P}, {Pd}. {F} the {Fkind} counted: one, two, three!", "{F} the {Fkind} waved a flag {P}, and off they went.")
    t.say("{G} was far ahead, but then {Ghe} [smelled/saw] {Gtreat} and stopped to eat.",
          "Halfway, {G} [stopped/sat down] to eat {Gtreat}, for {Ghe} was sure to win.")
    t.say("{H} [ran/went] on and on, step by step.", "{H} did not stop, [not even once/not even for {Htreat}].")
    t.break_paragraph()
    t.say("So it was {H} who won the {O}, and {G} [hung {Ghis} head/blushed].", '"{H} wins!" [called/cried] {F}, and gave {Hhim} the {O}.')
    t.say('"Well done," said {G} [quietly/at last]. "Next time I will [not stop/be less proud]."',
          "{H} [shared/broke] a piece of {Htreat} with {G}, and they shook hands.")
    t.slots["dream"] = t.expand("the {O}")
    t.slots["plan"] = t.expand("{H} races {G} {P}. {G} stops for {Gtreat}. {H} wins the {O}.")
    closing(t, ["Slow and steady wins the race.", "Pride runs fast but stops too soon."])


def plot_trade(t):
    """A chain of trades that leads back to the first object."""
    t.thing()
    t.say("{H} had {aO}, but {Hhe} [wanted something else/was tired of it].", "One day {Hhe} took {Hhis} {O} to the market.")
    t.person("G")
    t.break_paragraph()
    t.slots["x"], t.slots["y"] = t.pick([r[0] for r in OBJECTS if r[0] != t.slots["o"]]), t.pick(COLOURS)
    t.slots["X"] = t.expand("{y} {x}")
    t.slots["aX"] = article(t.slots["X"])
    t.say('{G} the {Gkind} said, "I will give you {aX} for your {O}."', "{G} the {Gkind} had {aX} and liked the {O}. So they [traded/swapped].")
    t.person("F")
    t.say("With the {X}, {H} went to {F} the {Fkind} and got a [big/whole/full] bag of {Ftreat}.",
          "{F} the {Fkind} [needed/wanted] {aX}, and gave {H} a [big/full] bag of {Ftreat} for it.")
    t.break_paragraph()
    t.say("But soon {H} missed the {O}, because it {does}.", "At home {Hhe} was sad. {HHe} thought of the {O}, which {does}.")
    t.say("{G} was hungry, so {H} gave {Ghim} the {Ftreat}, and {G} gave back the {O}.",
          'So {Hhe} took the {Ftreat} to {G} at {Ghome}. "Here," said {G}, "take your {O} back."')
    t.slots["dream"] = t.expand("the {X}")
    t.slots["plan"] = t.expand("{H} trades the {O} for {aX}, and that for {Ftreat}. In the end {G} gives back the {O}.")
    closing(t, ["You know what you love when it is gone.", "The best trade is the one that brings you home."])


def plot_shelter(t):
    """Guests come in from the weather, each with what they love."""
    t.person("F")
    t.person("G")
    t.say("[That evening/At dusk], there was a knock at {Hhome}.", "{H} was [making/eating] {Htreat} when somebody knocked.")
    t.say('It was {F} the {Fkind}. "The storm has [broken/shaken] {Fhome}," said {Fhe}. "May I [stay/come in]?"',
          '"Please let me in," said {F} the {Fkind}. "There is [water/ice/mud] in {Fhome}."')
    t.say('"Of course," said {H}. {F} had brought {Ftreat}.', "{H} opened the door [wide/at once], and {F} came in with {Ftreat}.")
    t.break_paragraph()
    t.say("[Then/Soon] there was another knock. It was {G} the {Gkind} from {Ghome}, with {Gtreat}.",
          "Next came {G} the {Gkind}, [cold/wet] and [tired/shivering], with {Gtreat} under {Ghis} arm.")
    t.say("There was [little/not much] room, but they all sat close to the fire.", '"There is always room for one more," said {H}.')
    t.break_paragraph()
    t.say("They ate {Htreat}, {Ftreat} and {Gtreat}, and told stories [all night/until morning].",
          "So {H}, {F} and {G} had a feast: {Htreat}, {Ftreat} and {Gtreat}.")
    t.slots["dream"] = t.expand("{Gtreat}")
    t.slots["plan"] = t.expand("{F} and {G} come to {Hhome} in the storm. They eat {Htreat}, {Ftreat} and {Gtreat}.")
    closing(t, ["A small house is big enough for friends.", "A warm heart makes a warm house."])


def plot_letter(t):
    """A letter is blown away, carried by a friend, and read out word for word."""
    t.person("F")
    t.person("G")
    t.thing()
    t.place("P")
    t.slots["day"] = t.pick(DAYS)
    t.slots["letter"] = t.expand(t.pick([
        "Dear {F}, meet me {P} on {day}. I will bring my {O}.",
        "Dear {F}, I have {aO} for you. Come on {day}, {P}.",
        "My dear {F}, please come {P} on {day} and bring {Ftreat}. I have {aO}."]))
    t.say("{H} wrote a letter to {F} the {Fkind}.", "{HHe} sat down in {Hhome} and wrote a letter.")
    t.say('It said: "{letter}"')
    t.break_paragraph()
    t.say("But the wind [took/stole] the letter and [carried/blew] it [away/over the fields].",
          "On the way, {Hhe} [lost/dropped] the letter in the [grass/snow/mud].")
    t.say("{G} the {Gkind} found it near {Ghome} and [ran/hurried/went] to {Fhome}.",
          "It was {G} the {Gkind} who [found/saw] it and brought it to {Fhome}.")
    t.break_paragraph()
    t.say('{F} [opened it/put on {Fhis} glasses] and read: "{letter}"')
    t.say("So on {day} {F} went {P}, {Pd}, and there was {H} with the {O}.",
          "When {day} came, {H} waited {P} with the {O}, and {F} [came/was there] too.")
    t.slots["dream"] = t.expand("letters in the wind")
    t.slots["plan"] = t.expand("{H} writes to {F} about {day} and the {O}. {G} finds the letter. They meet {P}.")
    closing(t, ["A true word finds its way.", "Even the wind can carry a letter."])


PLOTS = {f.__name__[5:]: f for f in (plot_lost, plot_mend, plot_gift, plot_count, plot_door, plot_journey, plot_race,
                                     plot_trade, plot_shelter, plot_letter)}
WITH_OBJECT = [n for n in PLOTS if n not in ("count", "journey", "shelter")]


def story(rng, **fixed):
    """One story. Returns its text, its entropy in nats and the slots; fixed may hold hero, object, colour, plot."""
    t = Teller(rng, **fixed)
    opening(t)
    t.break_paragraph()
    PLOTS[t.given("plot", list(PLOTS))](t)
    return t.text(), t.nll, t.slots


SYSTEMS = ["You are a storyteller.", "You tell short stories for children.", "You are a kind old storyteller.",
           "Tell simple stories with a happy end.", "You are a helpful assistant."]
REQUESTS = ["Tell me a story about {about}.", "Please tell me a story about {about}.",
            "I would like a story about {about}.", "Can you tell me a story about {about}?",
            "Write a short story about {about}."]


def fact(rng, row):
    """A question about one of the people and its answer."""
    name, he, kind, home, treat = row
    return rng.choice([
        (f"Who is {name}?", f"{name} is {article(kind)}. {he.capitalize()} lives in {home} and loves {treat}."),
        (f"Where does {name} live?", f"{name} lives in {home}."),
        (f"What does {name} love?", f"{name} loves {treat}.")])


def follow_up(rng, slots):
    """A question about the story just told and its answer."""
    pairs = [("Thank you!", "You are welcome."),
             (f"Who was {slots['F']}?", f"{slots['F']} was {slots['Fakind']} from {slots['Fhome']}."),
             (f"Where did {slots['H']} live?", f"{slots['H']} lived in {slots['Hhome']}.")]
    if "c" in slots:
        pairs.append((f"What colour was the {slots['o']}?", f"The {slots['o']} was {slots['c']}."))
    return rng.choice(pairs)


def conversation(rng):
    """Chat messages: an optional system text, a request or question, the answer, sometimes a second turn."""
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.35 else []
    hero, thing, colour = rng.choice(PEOPLE), rng.choice(OBJECTS), rng.choice(COLOURS)
    kind, slots = rng.random(), None
    if kind < 0.12:
        ask, answer = fact(rng, hero)
        plan = f"The question is about {hero[0]}."
    elif kind < 0.22:
        answer, _, slots = story(rng)
        ask = rng.choice(["Tell me a story.", "Please tell me a story.", "Tell me something nice."])
    elif kind < 0.40:
        answer, _, slots = story(rng, hero=hero)
        ask = rng.choice(REQUESTS).format(about=hero[0])
    else:
        answer, _, slots = story(rng, hero=hero, object=thing, colour=colour, plot=rng.choice(WITH_OBJECT))
        ask = rng.choice(REQUESTS).format(about=f"{hero[0]} and {article(colour + ' ' + thing[0])}")
    messages.append({"role": "user", "content": ask})
    plan = slots["plan"] if slots else plan
    messages.append({"role": "assistant", "content": answer, "reasoning_content": plan if rng.random() < 0.5 else ""})
    if slots and rng.random() < 0.35:
        ask, answer = follow_up(rng, slots)
        plan = "The question is about the story." if rng.random() < 0.5 else ""
        messages.append({"role": "user", "content": ask})
        messages.append({"role": "assistant", "content": answer, "reasoning_content": plan})
    return messages
