"""Golden renderings of chat templates: tests/golden/chat.json.

usage: python chat.py        (transformers 5.23.0; no randomness)

The templates are written for this test, in the manner of published ones: what these use of Jinja and of Python's methods is
in them. Each conversation is given as a line of a .jsonl file would have it; `expected` is what transformers writes, given
the contents in the form that the template takes, or `refused`, what the template says. The date is the one that Nibble
shows to every template.
"""
import datetime
import json
import pathlib

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

OUT = pathlib.Path(__file__).parent.parent / "chat.json"


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 12, 0, 0)


def user(text, *images):
    return {"role": "user", "content": [{"type": "image"} for _ in images] + [{"type": "text", "text": text}] if images else text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Answer in verse.\n"}
SHORT = [user("  Wie geht's? "), assistant("Gut — <b>\"danke\"</b>!\n")]
LONG = [SYSTEM, user("one & two"), assistant("<think>\nhm\n</think>\n\n three"), user("four\n\nfive"), assistant("six")]
LOPSIDED = [assistant("I begin."), user("Do you?")]
IMAGE = [user("What is this?", 1), assistant("A cat."), user("And now?"), assistant("Still a cat.")]
IMAGES = [SYSTEM, user("Which one?", 1, 2), assistant("The second.")]
TEXTS = {"short": SHORT, "long": LONG, "lopsided": LOPSIDED}
ALL = {**TEXTS, "image": IMAGE, "images": IMAGES}

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Thinking is kept in the last answer only, found by a backward pass over the messages.
THINKING = """\
{%- macro heading(role, extra='') -%}
<|im_start|>{{ role }}{{ extra }}
{% endmacro %}
{%- if tools %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- heading(message.role) }}
        {%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}
            {{- '<think>\\n' ~ reasoning.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}
        {{- content }}
        {%- endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- heading(message.role, ' #' ~ loop.index) + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 1970" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

# System text is put before the last user turn; an assistant's turn ends with EOS.
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{#- A comment that is not written. -#}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last or message == user_messages[-1] %}
            {{- "[INST] " }}
            {%- if system_message is defined %}
                {{- system_message + "\\n\\n" }}
            {%- endif %}
            {{- message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

DEEPSEEK = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}{{ '<|none|>' }}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|end|>'}}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|tool_end|>'}}{% endif %}"""

# Neighbours in the loop, loop controls, dictionaries, and what is printed of values that are not strings.
ODDITIES = """\
{% set names = {'user': 'U', 'assistant': 'A', 'system': 'S'} %}
{% for key, value in names.items() %}
{{ loop.index }}/{{ loop.length }} {{ key.upper() }}={{ value }}{% if not loop.last %}, {% endif %}
{% endfor %}

{% for message in messages %}
  {% if loop.index > 4 %}{% break %}{% endif %}
  {% if message.content | length == 0 %}{% continue %}{% endif %}
  {%- if loop.previtem is defined and loop.previtem.role == message.role %}again {% endif %}
  {{ names.get(message['role'], 'other') }}{{ names.get('nobody') }}: {{ message.content | replace('\\n', ' / ') | trim }}
  {{- ' (' ~ (loop.nextitem.role if loop.nextitem is defined else 'end') ~ ')' }}
{% endfor %}
{{ messages | map(attribute='role') | join(' ') }} {{ none }} {{ true }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 7 % 4 }}
{{ messages | rejectattr('role', 'equalto', 'system') | list | length }} {{ messages | map(attribute='role') | unique | list | length }}
{{ messages[-1].role.title() }} {{ messages[0]['content'][:3] | tojson }} {{ {'b': [1, 'é'], 'a': none} | tojson }} {{ [1, 2] | tojson(indent=2) }}
{{ 'x' in 'xyz' and 'q' not in names }} {{ (messages | first).role }} {{ undefined_name }}{{ messages[0].undefined_name | default('nothing') }}
{% set ns = namespace(count=0) %}
{% for message in messages if message.role == 'user' %}{% set ns.count = ns.count + 1 %}{% else %}no user{% endfor %}
{{ ns.count }} {{ "%s-%s" | format('a', 'b') }} {{ 'a,b'.split(',') | last }} {{ 'abc'[::-1] }} {{ 'b' if false else 'c' }}{{ 'b' if false }}
{% filter upper %}shout{% endfilter %}
{%- macro frame(left, right='>') %}{{ left }}{{ caller('in') }}{{ right }}{% endmacro %}
{% call(word) frame('<') %}{{ word }}{% endcall %}
{%- set block %}
 a block of {{ 1 + 1 }} lines
{% endset %}
{{ block | trim | upper }} {{ messages[0]['content'].find('e') }} {{ '-'.join(['a', 'b']) }} {{ ['a', 'b'] + ['c'] }} {{ {'k': 'v'} }}
{%- for index in range(1, 4) -%}
    {{ index }}{{ loop.cycle('odd', 'even') }}
{%- endfor %}
{# a comment #}
{{ 'end' -}}

"""

QWEN2_VL = """\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}"""

LLAVA = """\
{% for message in messages %}{{ message['role'].upper() + ': ' }}{# images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"""

SMOLVLM = """\
<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}"""

# The system turn is a string, the others are lists where there are images.
MLLAMA = """\
{{- bos_token }}
{%- set image_ns = namespace(has_images=false) %}
{%- for message in messages %}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set image_ns.has_images = true %}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{%- if messages[0]['role'] == 'system' %}
    {%- if image_ns.has_images and not messages[0]['content'] is string %}
        {{- raise_exception("A system message is a string here") }}
    {%- endif %}
    {{- '<|system|>' + messages[0]['content'] | trim + '<|eot|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif content['type'] == 'text' %}
                {{- content['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
"""

GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
"""


# Name, template, conversations, the placeholder of images, and the form of each role's content: of conversations without
# images, and of those with. A `system` of None is a role that the template refuses: its text belongs to the first user.
TEXT = {"system": "text", "user": "text", "assistant": "text"}
PARTS = {"system": "parts", "user": "parts", "assistant": "parts"}
CASES = [
    ("chatml", CHATML, TEXTS, None, TEXT, None),
    ("thinking", THINKING, TEXTS, None, TEXT, None),
    ("llama3", LLAMA3, TEXTS, None, TEXT, None),
    ("gemma", GEMMA, TEXTS, None, {**TEXT, "system": None}, None),
    ("mistral", MISTRAL, TEXTS, None, TEXT, None),
    ("deepseek", DEEPSEEK, TEXTS, None, TEXT, None),
    ("oddities", ODDITIES, TEXTS, None, TEXT, None),
    ("qwen2_vl", QWEN2_VL, ALL, "<|image_pad|>", TEXT, PARTS),
    ("llava", LLAVA, ALL, "<image>", PARTS, PARTS),
    ("smolvlm", SMOLVLM, ALL, "<image>", PARTS, PARTS),
    ("mllama", MLLAMA, ALL, "<|image|>", TEXT, {**PARTS, "system": "text"}),
    ("gemma3", GEMMA3, ALL, "<start_of_image>", TEXT, PARTS),
    # No part of it writes images: their placeholder is a line of the text.
    ("chatml_seeing", CHATML, ALL, "<image>", TEXT, None),
]


def formed(messages, forms, placeholder):
    """The messages in the form that the template takes."""
    written = []
    head = ""
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        parts = [dict(part) for part in parts]
        role = message["role"]
        if forms[role] is None:
            head = parts[0]["text"] + "\n\n"
            continue
        if head:
            parts[0]["text"] = head + parts[0]["text"]
            head = ""
        if forms[role] == "text":
            parts = "\n".join(part["text"] if part["type"] == "text" else placeholder for part in parts)
        written.append({"role": role, "content": parts})
    return written


def main():
    chat_template_utils.datetime = FixedDate
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
    cases = []
    for name, template, conversations, placeholder, text_forms, image_forms in CASES:
        case = {"name": name, "template": template, "placeholder": placeholder, "conversations": []}
        for title, messages in conversations.items():
            sees = any(not isinstance(message["content"], str) for message in messages)
            forms = image_forms if sees and image_forms else text_forms
            one = {"name": title, "messages": messages}
            try:
                one["expected"] = tokenizer.apply_chat_template(formed(messages, forms, placeholder), chat_template=template, tokenize=False)
            except jinja2.TemplateError as error:
                one["refused"] = str(error)
            case["conversations"].append(one)
        cases.append(case)
    golden = {"special_tokens": tokens, "cases": cases}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
