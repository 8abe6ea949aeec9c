"""Plots and words of the built-in stories. ``[a|b]`` is a choice; ``{slot}`` is filled with a word of the story."""

GIRLS = "Mila|Ruby|Nora|Zoe|Ada|Ivy|Elsie|Clara|Rosa|Lena|Anna|Maya|Nina|Lucy|Tess|Hana|Emma|Wren|Greta|Pearl|Alma|Dora"
BOYS = "Tom|Otis|Ben|Finn|Leo|Hugo|Sam|Max|Theo|Jack|Omar|Felix|Kofi|Arlo|Milo|Oscar|Noah|Ravi|Emil|Bruno|Jasper|Ned"
PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "boy": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
ANIMALS = "fox|badger|raccoon|otter|bear|squirrel|beaver|mole|owl|turtle"
PETS = "puppy|kitten|duckling|lamb|goat|pony|piglet|donkey"
PET_NAMES = "Button|Pepper|Biscuit|Waffle|Pickle|Clover|Nutmeg|Dumpling|Acorn|Muffin|Sprout|Bramble"
SMALL_ANIMALS = "mouse|hare|weasel|marten|hedgehog|rabbit"
COLLARS = "red collar|blue collar|green ribbon|yellow scarf|leather collar|orange ribbon"
CREATURES = "magpie|crow|gull|jay|raven"
GIVERS = "grandmother|grandfather|mother|father|uncle|aunt|sister|brother"
# Name, trade, and key of the pronouns.
ELDERS = (
    ("Mrs. Plum", "baker", "girl"),
    ("Mr. Alder", "carpenter", "boy"),
    ("Old Barnaby", "fisherman", "boy"),
    ("Aunt Juniper", "beekeeper", "girl"),
    ("Captain Rose", "sailor", "girl"),
    ("Mr. Finch", "tailor", "boy"),
    ("Granny Oak", "gardener", "girl"),
    ("Mr. Stone", "miller", "boy"),
    ("Miss Lark", "teacher", "girl"),
    ("Mr. Gray", "shepherd", "boy"),
    ("Mrs. Bell", "doctor", "girl"),
    ("Uncle Moss", "clockmaker", "boy"),
)
# Adjectives, nouns that they fit, and what can happen to these things: a mishap and its repair.
THINGS = (
    (
        "wooden|silver|brass|tin|painted|shiny|old|tiny|golden",
        "drum|whistle|bell|key|boat|flute|box|cup|compass|button|spoon|ring|clock|star",
        (
            ("{he} tripped on a root and it broke in two", "put the two halves together with glue and a bit of wire"),
            ("the wheel of a cart rolled over it", "bent it back, little by little, and rubbed it until it shone"),
            ("it fell into the mud and got a long scratch", "washed it, smoothed it with sand, and painted it again"),
            ("a cow stepped on it", "knocked out every dent with a small hammer"),
        ),
    ),
    (
        "red|blue|green|yellow|striped|woolen|soft|purple|orange|white",
        "scarf|hat|ribbon|blanket|doll|cap|pillow|apron|sweater|cape",
        (
            ("a goat ate a corner of it", "cut the corner round and stitched a flower over the bite"),
            ("it got caught on a nail and tore", "closed the hole with fine thread, so that nobody could see it"),
            ("a pot of ink fell over it", "soaked it in milk, rinsed it three times, and dried it by the stove"),
            ("a hen made a nest in it", "brushed out the straw and sewed up every hole"),
        ),
    ),
    (
        "red|blue|green|yellow|striped|purple|orange|paper|bright",
        "kite|lantern|umbrella|flag|fan|crown|mask|windmill",
        (
            ("the wind blew it into a thorny bush", "picked out the thorns and pasted a patch over every hole"),
            ("the rain made it wet and gray", "dried it in the sun and gave it a new coat of color"),
            ("{he} sat on it by mistake", "straightened it and made it strong with two thin sticks"),
        ),
    ),
)
PLACES = (
    "the old mill|the orchard|the harbor|the meadow|the pine forest|the market|the duck pond|the stone tower|"
    "the lighthouse|the river|the red barn|the windy hill|the village square|the school|the bakery garden|the beach"
)
SPOTS = (
    "under the bridge|behind the stone wall|inside a hollow log|between the roots of an oak tree|under the bench|"
    "in the tall grass|behind the wood pile|beside the well|on top of the hay|under an old boat|in the flower bed|"
    "by the garden gate|among the pumpkins|at the foot of the stairs|behind a row of barrels|near the big gray rock"
)
# A tool, the place and the trouble in which it helps, and the rescue.
TOOLS = (
    (
        "long rope",
        "the old quarry",
        "{friend} slipped and fell into a deep hole",
        "{hero} tied one end of the rope to a tree and threw the other end down. {Friend} held on, and {hero} pulled "
        "and pulled until {friend_he} was out",
    ),
    (
        "silver whistle",
        "the hills",
        "a thick fog came, and {friend} could not find the way back",
        "{hero} blew the whistle again and again. {Friend} heard it in the fog and followed the sound, step by step",
    ),
    (
        "little lantern",
        "the caves by the sea",
        "{friend} went in too far and could not see the way out",
        "{hero} lit the lantern and held it up high. Deep in the dark, {friend} saw the light and walked toward it",
    ),
    (
        "old umbrella",
        "the far side of the lake",
        "a cold rain began to fall, and {friend} was tired and shaking",
        "{hero} opened the umbrella. There was room for two under it, and they walked home without one more drop on "
        "their heads",
    ),
    (
        "round mirror",
        "the island",
        "the tide came in, and {friend} sat on a rock with water all around",
        "{hero} held the mirror up to the sun and flashed it at a fishing boat. The sailors saw the light and took "
        "{friend} on board",
    ),
    (
        "iron spoon",
        "the snowy woods",
        "the snow slid from the roof of a hut and shut {friend} inside",
        "{hero} dug with the spoon, a little at a time. At last there was a gap, and {friend} crawled out",
    ),
    (
        "woolen blanket",
        "the frozen lake",
        "{friend} broke through the thin ice and came out wet and cold",
        "{hero} wrapped the blanket around {friend} two times and held {friend_him} close. Soon {friend_his} teeth "
        "stopped shaking",
    ),
    (
        "brass bell",
        "the forest",
        "{friend} climbed a tall tree and was too scared to come down",
        "{hero} rang the bell as loud as {he} could. A farmer heard it and came with a ladder, and {friend} climbed "
        "down safely",
    ),
    (
        "strong magnet",
        "the well behind the church",
        "{friend} dropped the key to {friend_his} house into the water",
        "{hero} hung the magnet on a string and let it down. Click! Up came the key, and {friend} danced with joy",
    ),
    (
        "ball of string",
        "the corn maze",
        "{friend} ran ahead and got lost",
        "{hero} tied the string to the gate and walked in. When {he} found {friend}, they followed the string all "
        "the way back",
    ),
)
# A skill that the hero wants to learn, how the first attempt fails, and the advice of the teacher.
SKILLS = (
    ("swim like a fish", "swallowed half the pond", "Lie on your back and look at the clouds"),
    ("bake bread", "made a loaf as hard as a brick", "Give the dough time to rise"),
    ("play the fiddle", "made all the cats run away", "Slowly, and hold the bow like a feather"),
    ("ride a bicycle", "landed in a hedge", "Look at the road and not at your feet"),
    ("skate", "sat down hard on the ice", "Bend your knees and do not hurry"),
    ("paint a portrait", "made a face like a potato", "First look for a long time, then paint"),
    ("dance", "fell over {his} own feet", "Count to four and listen to the drum"),
    ("juggle", "dropped every single egg", "Start with one, then two, then three"),
    ("sail a boat", "went round and round in circles", "Feel the wind on your nose and turn with it"),
    ("sing", "sounded like a rusty gate", "Breathe deep, and think of something you love"),
)

_LOST_AND_FOUND = """
[Once upon a time, there was|There once was|In a house near {place} lived] {a kind} named {hero}. {Hero} had {a
thing}, [a gift from|made by|a present from] {his} {giver}, with {his} name on it in tiny letters. {He} [took it
everywhere|loved it more than anything|showed it to everyone {he} met].

One [sunny|windy|cool|gray|warm] [morning|day|afternoon], {hero} and {his} friend {friend} went to {other_place} to
[play|pick berries|look for frogs|have a picnic|hunt for treasure]. When [the sun was low|they were tired|it was time
to eat], {hero} [looked around|stopped|turned pale]. The {thing} was gone!

["Oh no!" {he} cried.|{His} eyes filled with tears.|"Where can it be?" {he} asked.] "[Do not cry|Do not worry|Do not
give up], {hero}," said {friend}. They looked {spot}. [Nothing was there.|They found only leaves.|There was only a
sleepy snail.] [They looked {other_spot}. Still nothing.|They looked {other_spot} and found a lost shoe, but nothing
else.|They went to {other_place} once more, and came back with empty hands.]

[On the road|On the way back|At the corner] they met {elder}, the {trade}. "[I saw a {creature} with something in its
mouth|A {creature} flew over my head|I heard a {creature} laughing]," said {elder}. "[Look in the old elm|Go and see
the big nest|Try the tall pine]." {Friend} climbed up, and there it lay among [shells and spoons|buttons and
nails|feathers and coins]. "It says {hero}!" {friend} called. "[This is yours|It is yours|I have it]!"

{Hero} [danced in a circle|laughed out loud|smiled from ear to ear]. "Thank you, {friend}," {he} said, and [they
walked home singing|they shared the last berries|from that day on {he} never let go of the {thing}].
"""

_THE_TOOL = """
[{Hero} was {a kind} who|Once there was {a kind} named {hero} who|Near {place} lived {a kind} named {hero} who] [liked
to go for long walks|wanted to be brave|dreamed of adventures]. One [morning|evening|winter day|spring day], {his}
{giver} gave {him} {a tool}. "[Keep it with you|Take good care of it|Put it in your bag]. [One day you will need it|It
may help a friend|You never know when it will be useful]."

{Hero} [thought it was a strange gift|did not know what to do with it|would rather have had a cake], but {he} [said
thank you and packed it|carried it every day|kept it anyway].

[Some days later|The next week|Not long after that], {hero} went to {tool_place} with {his} friend {friend}. At first
[all was well|they had a lovely time|they told each other jokes]. But then {trouble}. "Help me, {hero}!"
[cried|called|shouted] {friend}. [There was nobody else around. |What could {he} do? |{Hero}'s heart beat fast. |]Then
{he} remembered the {tool}.

{rescue}.

"[You saved me|You were so brave|You are a true friend], {hero}!" said {friend}. "It was the {tool}," said {hero}. "My
{giver} gave it to me." [That evening they all drank hot cocoa|They ran home and told the story twice|At home there
was warm soup for everyone], and {his} {giver} [smiled|winked|was very proud].
"""

_THE_PRESENT = """
[It was almost {friend}'s birthday.|{Friend}'s birthday was near.|{Friend} was going to have a party.] {Hero}, {a
kind} who lived by {place}, wanted to give {friend_him} something special. For [three days|a week|two evenings] {hero}
[worked in the kitchen|worked in the shed|sat at the table] and made {a thing}. [It was beautiful.|It was perfect.|It
was the best thing {he} had ever made.]

But on the way to the party, [something bad happened|{he} had bad luck]: {mishap}. {Hero} sat down {spot} and
[cried|sighed|hid {his} face]. "Now I have no gift for {friend}," {he} said.

[Just then|After a while], {elder}, the {trade}, came by. "[Why are you so sad|What is the matter|Why these tears]?"
{Hero} showed {elder_him} the {thing}. "[We can fix this|Let us see|Come with me]," said {elder}. Together they
{repair}. Now it looked [even better than before|better than new|different, but very pretty].

{Hero} [ran all the way|hurried along the road|did not stop once]. {Friend} opened the gift [last of all|with shining
eyes|very slowly]. "{A thing}! Did you make it, {hero}?" "Yes," said {hero}, "and {elder} helped me." So {friend}
[asked {elder} to come in|cut the biggest piece of cake for {elder}|ran out and hugged {elder} too], and {friend_he}
kept the {thing} [on the shelf|next to {friend_his} bed|by the window] for years and years.
"""

_THE_TRUTH = """
{Friend} had {a thing}, and {hero}, {a kind} who lived by {place}, had none. "[May I borrow it|Can I have it for one
day|Will you lend it to me]?" asked {hero}. {Friend} [thought about it|bit {friend_his} lip]. "Yes, but [please be
careful|bring it back tomorrow|do not lose it]. It was a present from my {giver}."

{Hero} [promised|nodded|gave {his} word] and [ran off|skipped away|hurried out] to {other_place}. {He} played there
all day. But when {he} [wanted to go home|heard the bells ring|felt the first cold wind], {mishap}. {His} [cheeks grew
hot|hands began to shake|stomach felt like a stone].

{He} hid the {thing} {spot}. {He} could [tell {friend} that {a creature} took it|say it was stolen by {a creature}].
But that night {hero} could not [sleep|close {his} eyes]. [In the morning|When the sun came up] {he} took it out and
carried it to {friend}'s door.

"I am sorry, {friend}," said {hero}. "I [was not careful|broke my promise]. Look at your {noun}." {Friend} was
[quiet|very still] for a moment. "I am sad about it," {friend_he} said, "but [I am glad that you told me the truth|you
are brave to tell me]." They brought it to {elder}, the {trade}, and the three of them {repair}.

[After that|From then on], {friend} let {hero} borrow the {thing} whenever {he} [liked|asked], because {hero} was a
friend [who told the truth|{friend_he} could trust].
"""

_THE_PET = """
{Elder}, the {trade}, had {a pet} named {pet_name}. {Pet_name} [followed {elder_him} everywhere|slept in a basket by
the door|liked carrots and music] and wore {a collar} with a tiny bell. One [stormy|foggy|snowy|dark] night, [the wind
pushed the door open|thunder shook the house|someone left the gate open], and {pet_name} ran away.

The next day, {a kind} named {hero} was walking to {place} with {friend}. "[Hush|Wait|Listen]! What is that sound?"
said {hero}. {Spot}, they found {a pet}, [wet and shaking|hungry and scared|tired and dirty]. {Hero} gave it [some
bread|a sip of milk|half an apple], and {friend} [dried its ears|held it close|wrapped it in a coat].

"[Can we keep it|Shall we keep it]?" asked {friend}. {Hero} [wanted to say yes|thought for a while], but then {he} saw
the {collar}. "Someone [loves this {pet}|is looking for this {pet}]," {he} said. "We must find out who." They asked
[at the market|at the school|all over the village]. They [knocked on every door|asked a postman|put up a sign].

At last they came to a house where {elder} sat on the steps, calling, "{Pet_name}! {Pet_name}!" The {pet} [jumped up
and down|ran so fast that its bell rang] and {elder} [laughed and cried at once|could not speak for joy]. "How can I
thank you, {hero} and {friend}?" "[Let us visit {pet_name} every week,|May we take {pet_name} for walks?]" said
{hero}. And they did.
"""

_THE_SKILL = """
{Hero} was {a kind} who lived near {place}. More than anything, {he} wanted to {skill}. {Elder}, the {trade}, had {a
thing} in the window: it was the prize for the summer fair. "[I would love to win it for {friend}|{Friend} has always
wanted one]," thought {hero}, because {friend} was [ill in bed|{his} best friend and very lonely|sad that summer].

So {hero} tried to {skill}. {He} {failure}. [Everybody laughed. |Some children giggled. |]{Hero} [ran away and hid|sat
down] {spot}. "I will never learn it," {he} said.

"Never is a long time," said a voice. It was {elder}. "I [can|could] teach you. {advice}." {Hero} tried again, and
again, and [a hundred times more|every day for a month]. It got [a little better|easier] each time. "{advice}," {he}
[said to {himself}|whispered] every night.

Then came the day of the fair. {His} [knees shook|mouth was dry], but {he} remembered the words of {elder}. [The
people clapped and cheered|Nobody laughed now|Even the mayor stood up and cheered]. {Hero} had won! {He} took the
{thing} and carried it [straight|all the way] to {friend}. "For me?" asked {friend}, and [smiled for the first time in
weeks|hugged {hero} with both arms]. "[Now teach me to {skill}!|Will you teach me to {skill}, too?]"
"""

_THE_FAVOR = """
{Hero}, {a kind}, was on the way to {place} to [sell|trade|show] {a hard_thing}. [Suddenly {he} heard|There {he}
heard] a cry for help. {Spot} lay {a small_animal} with its foot in a trap. "[Please|Oh, please], help me," it said.
"My name is {pet_name}." {Hero} [was in a hurry|was already late], but {he} stopped. {He} pushed the {hard_thing}
between the iron teeth, and {pet_name} was free. The {hard_thing} was [spoiled|covered with scratches], and nobody
would [buy|want] it now. "[Never mind|It does not matter]," said {hero}. "I will not forget this," said {pet_name},
and was gone.

[When winter came|One night in the fall|Many weeks later], {hero} lost {his} way in [the deep woods|the hills|a
snowstorm] near {other_place}. [It was dark and cold. |It was getting dark. |]{He} called for {his} {giver}, but [only
the wind answered|no answer came]. {He} sat down and held the {hard_thing} in {his} hands.

[Then two eyes shone in the dark|Then something soft touched {his} arm]. "I know that {hard_thing}," said a small
voice. "You are {hero}!" "{Pet_name}!" cried {hero}. The {small_animal} [went ahead|led the way], over [stones and
roots|ice and snow], and {hero} followed close behind. [Soon|Before midnight] {he} saw the light of {his} own house.
{His} {giver} [stood at the door|was waiting with a lamp]. "Who brought you home?" "{Pet_name} did," said {hero},
"because [I was kind once|one good turn brings another]." And the {hard_thing} hung above the [door|fire] from then
on.
"""

_THE_ERRAND = """
One [sunny|cool|quiet] morning, {elder}, the {trade}, gave {hero} {a thing}. "[Please take this|Bring this] to
{friend}, at {place}," said {elder}, "and do not [stop on the way|lose any time]." But {hero} was {a kind} who [liked
to stop|loved to look at everything]. First {he} [watched a snail|talked to a cow|counted the ducks]. Then {he} [threw
stones into the water|ate blackberries|climbed a fence]. And then {he} sat down {spot} and fell asleep.

When {hero} woke up, [the stars were out|it was nearly night|the sun was gone]. "[Dear me|Oh dear]! Where was I
going?" {He} looked at the {thing}, [thought hard|scratched {his} head], and remembered: to {friend}, at {place}! {He}
ran as fast as {his} legs could carry {him}.

"{A thing} from {elder}!" {he} called at the door. {Friend} [laughed|smiled]. "You are [late|very late], {hero}, but
you did not forget me. [Come in and have some tea.|Come in, there is soup.]"
"""


def _one_line_a_paragraph(plot: str) -> str:
    return "\n".join(" ".join(paragraph.split("\n")) for paragraph in plot.strip().split("\n\n"))


PLOTS = tuple(
    _one_line_a_paragraph(plot)
    for plot in (
        _LOST_AND_FOUND,
        _THE_TOOL,
        _THE_PRESENT,
        _THE_TRUTH,
        _THE_PET,
        _THE_SKILL,
        _THE_FAVOR,
        _THE_ERRAND,
    )
)
