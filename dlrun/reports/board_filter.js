// Filters of runs; the grammar is in dlrun/analysis/filter_grammar.txt, which the page shows.
const TOKEN = /\s+|([()])|(!=|>=|<=|=|>|<|~)|"([^"]*)"|'([^']*)'|((?:[^\s()=<>~"'!]|!(?!=))+)/y;

// The tokens of a filter: {kind: "bracket" | "sign" | "quoted" | "word", text}; throws an Error with a message.
function tokens(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const at = TOKEN.lastIndex, match = TOKEN.exec(text);
    if (!match) throw new Error(`no end of the quotes that begin at ${text.slice(at, at + 12)}`);
    const [, bracket, sign, double, single, word] = match;
    if (bracket) found.push({ kind: "bracket", text: bracket });
    else if (sign) found.push({ kind: "sign", text: sign });
    else if (double !== undefined || single !== undefined) found.push({ kind: "quoted", text: double ?? single });
    else if (word) found.push({ kind: "word", text: word });
  }
  return found;
}

const isNumber = (value) => value !== "" && Number.isFinite(Number(value));
const fold = (value) => String(value).toLowerCase();

function compares(sign, wanted) {
  const text = fold(wanted), number = isNumber(wanted) ? Number(wanted) : null;
  const same = (cell) => number !== null && isNumber(cell) ? Number(cell) === number : fold(cell) === text;
  const ordered = (order) => (cell) => number !== null && isNumber(cell) && order(Number(cell));
  return {
    "=": (cell) => text === "" ? cell === "" : cell !== "" && same(cell),
    "!=": (cell) => !same(cell),
    "~": (cell) => cell !== "" && fold(cell).includes(text),
    ">": ordered((v) => v > number), ">=": ordered((v) => v >= number),
    "<": ordered((v) => v < number), "<=": ordered((v) => v <= number),
  }[sign];
}

// The name of a column from its name or the last part of it; throws an Error with a message.
function columnNamed(word, names) {
  if (names.includes(word)) return word;
  const ends = names.filter((name) => fold(name) === fold(word) || fold(name).endsWith(`.${fold(word)}`));
  if (ends.length === 1) return ends[0];
  if (ends.length) throw new Error(`${word}: expected one column, found ${ends.join(", ")}`);
  throw new Error(`${word}: no such column; expected one of ${names.join(", ")}`);
}

// A filter as a function of a row; `cell(row, name)` gives a cell, `all(row)` all cells in lower case.
function filterOf(text, names, cell, all) {
  const left = tokens(text);
  const next = () => left[0] ?? { kind: "end", text: "" };
  const isWord = (word) => next().kind === "word" && fold(next().text) === word && left[1]?.kind !== "sign";
  const isEnd = () => next().kind === "end" || next().text === ")" && next().kind === "bracket";

  function either() {
    let found = both();
    while (isWord("or")) {
      left.shift();
      const first = found, second = both();
      found = (row) => first(row) || second(row);
    }
    return found;
  }
  function both() {
    let found = one();
    while (!isEnd() && !isWord("or")) {
      if (isWord("and")) left.shift();
      const first = found, second = one();
      found = (row) => first(row) && second(row);
    }
    return found;
  }
  function one() {
    if (isWord("not")) {
      left.shift();
      const inner = one();
      return (row) => !inner(row);
    }
    if (isWord("and") || isWord("or")) throw new Error(`expected a word or a comparison before ${next().text}`);
    const token = left.shift();
    if (!token) throw new Error("expected a word or a comparison at the end");
    if (token.kind === "bracket" && token.text === "(") {
      const inner = either();
      if (left.shift()?.text !== ")") throw new Error("expected ) at the end");
      return inner;
    }
    if (token.kind === "bracket" || token.kind === "sign")
      throw new Error(`expected a word or a column before ${token.text}`);
    if (next().kind === "sign") {
      const sign = left.shift().text, value = left.shift(), name = columnNamed(token.text, names);
      if (value?.kind !== "word" && value?.kind !== "quoted") throw new Error(`expected a value after ${token.text}${sign}`);
      const holds = compares(sign, value.text);
      return (row) => holds(cell(row, name));
    }
    const part = fold(token.text);
    return (row) => all(row).includes(part);
  }

  if (!left.length) return () => true;
  const found = either();
  if (left.length) throw new Error(`expected no ${left[0].text} here`);
  return found;
}
