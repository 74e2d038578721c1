"""Chat templates in the shapes that real models have, each with its assistant's turns marked.

`MARKED` has `{% generation %}` around what the model writes; `UNMARKED` is the same without.
"""

import re

from transformers import PreTrainedTokenizerFast

from families import llama_like


def turn(message: str, generation: str = "") -> str:
    """One pass of the loop over messages; `message` is another's, `generation` the assistant's."""
    return f"{{% if m.role == 'assistant' %}}{generation}{{% else %}}{message}{{% endif %}}"


def said(before: str = "", content: str = "{{ m.content }}", after: str = "") -> str:
    return f"{{% generation %}}{before}{content}{after}{{% endgeneration %}}"


CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}"
)
LOOP, END = "{% for m in messages %}", "{% endfor %}"
CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
SYSTEM = "{% if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\n\n' %}"
MERGED = SYSTEM + (
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
)  # into a user's turn
ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
)


def prompt(text: str) -> str:
    return f"{{% if add_generation_prompt %}}{text}{{% endif %}}"


MARKED = {
    "chatml": "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    + LOOP
    + turn(CHATML, "<|im_start|>assistant\n" + said(after=CALLS + "<|im_end|>\n"))
    + END
    + prompt("<|im_start|>assistant\n"),
    "headers with a date": "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Date: {{ date_string }}\n{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    + LOOP
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    + turn("{{ m.content | trim }}<|eot_id|>", said(content="{{ m.content | trim }}<|eot_id|>"))
    + END
    + prompt("<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "a merged system turn": "{{ bos_token }}"
    + MERGED
    + LOOP
    + ALTERNATE
    + turn(
        "<start_of_turn>user\n{% if loop.first %}{{ system }}{% endif %}{{ m.content | trim }}"
        "<end_of_turn>\n",
        "<start_of_turn>model\n" + said(content="{{ m.content | trim }}<end_of_turn>\n"),
    )
    + END
    + prompt("<start_of_turn>model\n"),
    "a system turn in the last question": "{{ bos_token }}"
    + MERGED
    + "{% set asked = messages | selectattr('role', 'equalto', 'user') | list | length %}"
    "{% set count = namespace(user=0) %}"
    + LOOP
    + ALTERNATE
    + turn(
        "{% set count.user = count.user + 1 %}[INST] {% if count.user == asked %}{{ system }}"
        "{% endif %}{{ m.content }}[/INST]",
        said(before=" ", after="{{ eos_token }}"),
    )
    + END,
    "an end token behind all": LOOP
    + turn(
        "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n",
        "<|assistant|>\n" + said(after="<|end|>\n"),
    )
    + END
    + "{% if add_generation_prompt %}<|assistant|>\n{% else %}{% generation %}{{ eos_token }}"
    "{% endgeneration %}{% endif %}",
    "an end token a turn": LOOP
    + turn(
        "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n",
        "<|assistant|>\n" + said(after="{{ eos_token }}\n"),
    )
    + END
    + prompt("<|assistant|>\n"),
    "thoughts of the last turn alone": "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    + LOOP
    + "{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0] %}"
    "{% set thought = thought.split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    + turn(
        CHATML,
        "<|im_start|>assistant\n{% generation %}"
        "{% if loop.index0 > last.user and (loop.last or thought) %}"
        "<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}"
        + CALLS
        + "<|im_end|>\n{% endgeneration %}",
    )
    + END
    + prompt("<|im_start|>assistant\n"),
    "thoughts dropped": "{{ bos_token }}"
    + LOOP
    + turn(
        "<|{{ m.role }}|>{{ m.content }}",
        "<|assistant|>"
        + said(content="{{ (m.content or '').split('</think>')[-1] }}{{ eos_token }}"),
    )
    + END
    + prompt("<|assistant|><think>\n"),
    "channels": LOOP
    + turn(
        "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>",
        "<|start|>assistant{% generation %}{% if m.thinking and loop.last %}<|channel|>analysis"
        "<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
        "<|channel|>final<|message|>{{ m.content }}{% if loop.last %}<|return|>{% else %}<|end|>"
        "{% endif %}{% endgeneration %}",
    )
    + END
    + prompt("<|start|>assistant"),
    "no generation prompt": LOOP
    + turn("[{{ m.role }}]\n{{ m.content }}</s>\n", said("[assistant]\n", after="</s>\n"))
    + END,
    "an end token at the end alone": LOOP
    + turn(
        "{{ m.role | upper }}: {{ m.content }}\n",
        "ASSISTANT:{% generation %} {{ m.content }}{% if loop.last %}{{ eos_token }}"
        "{% else %}\n{% endif %}{% endgeneration %}",
    )
    + END
    + prompt("ASSISTANT:"),
    "contents stripped": LOOP
    + turn(
        "### {{ m.role | capitalize }}:\n{{ m.content | trim }}\n\n",
        "### Assistant:\n" + said(content="{{ m.content | trim }}{{ eos_token }}\n\n"),
    )
    + END
    + prompt("### Assistant:\n"),
}
MARKS = re.compile(r"\{% (end)?generation %\}")
UNMARKED = {name: MARKS.sub("", template) for name, template in MARKED.items()}
SPECIAL = re.compile(r"<\|\w+\|>|<\w+_of_turn>|\[/?INST\]")


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, with what the template writes between angles and bars as special tokens."""
    tokenizer = llama_like()
    roles = [f"<|{role}|>" for role in ("system", "user", "assistant", "tool")]
    special_tokens = dict.fromkeys([*SPECIAL.findall(template), *roles])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer
