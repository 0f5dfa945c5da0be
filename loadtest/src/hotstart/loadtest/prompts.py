"""What the requests ask for: beginnings of code, as an editor sends them while somebody types.

The built-in set is small and our own. `--prompts FILE` replaces it; a trace's context lengths stretch each prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path

# English-like code gives about 3 to 4 characters a token with byte-pair vocabularies; only an estimate is needed, since
# the length of a trace's prompts matters in its order of magnitude.
CHARACTERS_PER_TOKEN = 3

BUILT_IN_PROMPTS: tuple[str, ...] = (
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return ",
    'import json\nfrom pathlib import Path\n\n\ndef read_settings(path: Path) -> dict:\n    """Read settings."""\n    ',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        self.",
    "def is_palindrome(text):\n    cleaned = [c.lower() for c in text if c.isalnum()]\n    return ",
    "import re\n\nEMAIL = re.compile(r'[^@ ]+@[^@ ]+')\n\n\ndef find_emails(text: str) -> list[str]:\n    return ",
    "def merge_sorted(left, right):\n    out = []\n    i = j = 0\n    while i < len(left) or j < len(right):\n        ",
    "from collections import Counter\n\n\ndef most_common_words(text, n=10):\n    words = text.lower().split()\n    ",
    "async def fetch_all(session, urls):\n    tasks = [session.get(url) for url in urls]\n    return await ",
    "def test_addition():\n    result = add(2, 3)\n    assert ",
    "with open('report.csv', newline='') as file:\n    reader = csv.DictReader(file)\n    total = sum(",
    'package main\n\nimport "fmt"\n\nfunc main() {\n\tfor i := 0; i < 10; i++ {\n\t\tfmt.',
    "func Max(values []int) (int, error) {\n\tif len(values) == 0 {\n\t\treturn 0, ",
    "type Cache struct {\n\tmu    sync.Mutex\n\titems map[string]string\n}\n\nfunc (c *Cache) Get(key string) ",
    'func handler(w http.ResponseWriter, r *http.Request) {\n\tname := r.FormValue("name")\n\tif name == "" {\n\t\t',
    "resp, err := http.Get(url)\nif err != nil {\n\treturn nil, fmt.Errorf(",
    "function debounce(callback, delay) {\n  let timer;\n  return (...args) => {\n    clearTimeout(timer);\n    ",
    "const users = await response.json();\nconst names = users\n  .filter((user) => user.active)\n  .map(",
    "export async function getItems(page = 1) {\n  const response = await fetch(`/api/items?page=${page}`);\n  if (!",
    "app.get('/health', (request, response) => {\n  response.",
    "const total = cart.items.reduce((sum, item) => ",
)


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a JSON Lines file, each line `{"prompt": "..."}`; empty lines are passed over.

    Raises ValueError naming the file, and the line that is not of that shape.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path}: cannot be read: {error}") from None
    prompts: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # and not at U+2028, which JSON may hold
        if not line.strip():
            continue
        where = f"--prompts {path}, line {number}"
        try:
            parsed = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: this is no JSON: {error}") from None
        prompt = parsed.get("prompt") if isinstance(parsed, dict) else None
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(f'{where}: an object with a non-empty text "prompt" is wanted')
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"--prompts {path}: there is no prompt in it")
    return tuple(prompts)


def fit_prompt(prompts: Sequence[str], index: int, context_tokens: int | None) -> str:
    """Return prompt `index`, about `context_tokens` tokens long: others stand before it, or it is cut in front.

    What is to be completed, the end, is always that of the prompt. None leaves the prompt as it is.
    """
    prompt = prompts[index]
    if context_tokens is None:
        return prompt
    wanted = context_tokens * CHARACTERS_PER_TOKEN
    parts = [prompt]
    length, before = len(prompt), index
    while length < wanted:
        before = (before - 1) % len(prompts)
        parts.append(prompts[before] + "\n\n")
        length += len(parts[-1])
    return "".join(reversed(parts))[-wanted:]
