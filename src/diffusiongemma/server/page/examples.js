// Questions of the kind the built-in models have learnt.

export const CHAT = [
  {
    name: "Read a sentence as JSON",
    hint: "Sensor v87 at Gilvyburg measured …",
    text: "Extract as JSON: temperature (number), site (string), humidity (integer), time (string), sensor (string)\nSensor v87 at Gilvyburg measured a humidity of 43 and a temperature of -1.8 at 15:15.",
  },
  {
    name: "Repair broken JSON",
    hint: "a brace is missing",
    text: 'Repair this JSON: {"name": "Ada", "age": 36',
  },
  {
    name: "A table as JSON",
    hint: "name,age and two rows",
    text: "Convert to JSON:\nname,age\nAda,36\nBo,41",
  },
  {
    name: "Something it does not know",
    hint: "it says what it can do",
    text: "What is the capital of France?",
  },
];

export const JSONS = [
  {
    name: "A house",
    text: "Extract as JSON: rooms (integer), area (integer), city (string), garden (boolean)\nA house with a garden at Olen Lane 5, Marethham, has 2 rooms on 319 square metres and costs 4200.",
    schema: {
      type: "object",
      properties: { rooms: { type: "integer" }, area: { type: "integer" }, city: { type: "string" }, garden: { type: "boolean" } },
      required: ["rooms", "area", "city", "garden"],
      additionalProperties: false,
    },
  },
  {
    name: "A payment",
    text: "Extract as JSON: date (string), amount (number), reference (integer)\nVala Belo sent 256.4 euros to Hanra Aleth on 3 May 1978, reference 63351.",
    schema: {
      type: "object",
      properties: { date: { type: "string" }, amount: { type: "number" }, reference: { type: "integer" } },
      required: ["date", "amount", "reference"],
      additionalProperties: false,
    },
  },
  {
    name: "A person",
    text: "Extract as JSON: name (string), age (integer)\nKalrin is 31.",
    schema: { type: "object", properties: { name: { type: "string" }, age: { type: "integer" } }, required: ["name", "age"] },
  },
];

export const INFILLS = [
  {
    name: "A name in JSON",
    before: 'Extract as JSON: name (string), age (integer)\nKalrin is 31.\n{"name": "',
    after: '", "age": 31}',
  },
  {
    name: "An argument in Python",
    before: "def read(path):\n    with open(",
    after: ") as f:\n        return f.read()\n",
  },
];

export const SUDOKUS = [
  { name: "51 clues", cells: "741.93526825164...9362..8.....5.634716.47829....93.68..987..16267.38.45.5.4..9..8" },
  { name: "39 clues", cells: "....9..5623....197.5.17.2.3.169.8...38..62...925.3186484.6..9........7...9231...8" },
  { name: "36 clues", cells: "8..91253.3..8.........6...42583...7....759...7.61.83.5..16.7.5.6.9235.1..7....2.." },
  { name: "31 clues", cells: "9..8.3.5....16.83.38..7.....6.3.8.294.3.5..7.......31...9..4....71.....564...29.." },
  { name: "32 clues, hard", cells: ".958.2....6.34.8..38..7.19....93527......4..8...28.4....9.....11..4.......719.34." },
];
