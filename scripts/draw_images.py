#!/usr/bin/env python3
"""Draws calib-data/images/ and writes calib-data/images.jsonl, the questions and answers about them.

usage: draw_images.py        (scripts/requirements/draw.txt; the same Pillow gives the same bytes)

Each picture is a function that draws it and returns it with its conversations, lists of (question, answer). What an answer
says is computed from what was drawn, or was read off the picture by its author. The last conversations are those that
calibration leaves out (src/calibration/built_in.rs), so the last pictures appear in no others.
"""
import io
import json
import math
import pathlib
import random

from PIL import Image, ImageDraw, ImageFilter, ImageFont

DATA = pathlib.Path(__file__).parent.parent / "calib-data"
INK, GREY, PAPER = "#222222", "#888888", "#ffffff"
COLOURS = {"red": "#c8372d", "blue": "#2f6db5", "green": "#3d9950", "orange": "#e58b2b", "purple": "#7a4fa3", "teal": "#2a9d9d"}
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]


def font(size):
    return ImageFont.load_default(size)


def sheet(width, height, colour=PAPER):
    image = Image.new("RGB", (width, height), colour)
    return image, ImageDraw.Draw(image)


def listed(words):
    return ", ".join(words[:-1]) + " and " + words[-1]


def wrapped(draw, text, width, face):
    """`text` in lines no wider than `width` pixels."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=face) > width:
            lines.append(line)
            longer = word
        line = longer
    return lines + [line]


def axes(draw, box, highest, step, unit):
    """The frame of a chart in `box`, and where in it a value lies."""
    left, top, right, bottom = box
    height = lambda value: bottom - value / highest * (bottom - top)
    for value in range(0, highest + 1, step):
        draw.line((left, height(value), right, height(value)), fill="#dddddd")
        draw.text((left - 8, height(value)), str(value), fill=INK, font=font(13), anchor="rm")
    draw.line((left, top, left, bottom, right, bottom), fill=INK, width=2)
    draw.text((left - 36, top - 24), unit, fill=INK, font=font(13))
    return height


def bar_chart():
    image, draw = sheet(640, 480)
    rain = [68, 52, 47, 41, 55, 63, 72, 80, 59, 74, 85, 77]
    draw.text((320, 24), "Rainfall in Port Arden, 2021", fill=INK, font=font(22), anchor="mm")
    height = axes(draw, (70, 80, 610, 420), 100, 20, "mm")
    for index, value in enumerate(rain):
        left = 80 + index * 44
        draw.rectangle((left, height(value), left + 30, 419), fill=COLOURS["blue"])
        draw.text((left + 15, 434), MONTHS[index][:3], fill=INK, font=font(13), anchor="mm")
        draw.text((left + 15, height(value) - 10), str(value), fill=INK, font=font(12), anchor="mm")
    driest, wettest = rain.index(min(rain)), rain.index(max(rain))
    below = [month for month, value in zip(MONTHS, rain) if value < 50]
    return image, [
        [("Which month was the wettest, and which the driest?",
          f"{MONTHS[wettest]} was the wettest with {rain[wettest]} mm. {MONTHS[driest]} was the driest with {rain[driest]} mm, "
          f"{rain[wettest] - rain[driest]} mm less."),
         ("And how much fell in the whole year?",
          f"Adding the twelve bars gives {sum(rain)} mm, which is about {sum(rain) / 12:.0f} mm a month.")],
        [("List the months in which less than 50 mm of rain fell.",
          f"Two bars stay below the height of 50 mm: {below[0]} ({rain[2]} mm) and {below[1]} ({rain[3]} mm)."),
         ("Write the chart's data as CSV.",
          "month,rainfall_mm\n" + "\n".join(f"{month},{value}" for month, value in zip(MONTHS, rain)))],
    ]


def line_chart():
    image, draw = sheet(720, 405, "#fbfaf5")
    years = list(range(2012, 2022))
    trams = [21, 23, 24, 27, 31, 36, 40, 44, 29, 38]
    buses = [46, 45, 43, 42, 40, 37, 35, 33, 20, 26]
    draw.text((360, 22), "Passengers a year, in millions", fill=INK, font=font(20), anchor="mm")
    height = axes(draw, (60, 70, 600, 350), 50, 10, "")
    place = lambda index: 80 + index * 56
    for name, values, colour in [("trams", trams, COLOURS["red"]), ("buses", buses, COLOURS["teal"])]:
        points = [(place(index), height(value)) for index, value in enumerate(values)]
        draw.line(points, fill=colour, width=3)
        for x, y in points:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        draw.text((points[-1][0] + 16, points[-1][1]), name, fill=colour, font=font(16), anchor="lm")
    for index, year in enumerate(years):
        draw.text((place(index), 366), str(year), fill=INK, font=font(13), anchor="mm")
    first = next(year for year, tram, bus in zip(years, trams, buses) if tram > bus)
    return image, [
        [("What does this chart show?",
          "It is a line chart of the passengers that trams and buses carried each year from 2012 to 2021, in millions. The red line "
          "for trams rises from 21 to 44 million in 2019, the teal line for buses falls over the same time from 46 to 33 million. "
          "Both drop sharply in 2020 and recover in part in 2021."),
         ("In which year did trams carry more people than buses for the first time?",
          f"In {first}: {trams[years.index(first)]} million by tram against {buses[years.index(first)]} million by bus. The year before, buses "
          "were still ahead by one million.")],
        [("How large was the drop from 2019 to 2020 for each of the two?",
          f"Trams fell from 44 to 29 million, by 15 million or about {15 / 44:.0%}. Buses fell from 33 to 20 million, by 13 million or "
          f"about {13 / 33:.0%}. So trams lost more passengers, but buses the larger share of theirs.")],
    ]


def pie_chart():
    image, draw = sheet(480, 480)
    shares = [("wheat", 38, "orange"), ("potatoes", 24, "blue"), ("grass", 17, "green"), ("barley", 13, "purple"), ("fruit", 8, "red")]
    draw.text((240, 26), "Land use on Hollin Farm", fill=INK, font=font(22), anchor="mm")
    start = -90.0
    for name, share, colour in shares:
        end = start + share * 3.6
        draw.pieslice((70, 80, 410, 420), start, end, fill=COLOURS[colour], outline=PAPER, width=3)
        middle = math.radians((start + end) / 2)
        x, y = 240 + 112 * math.cos(middle), 250 + 112 * math.sin(middle)
        draw.text((x, y - 9), name, fill=PAPER, font=font(16), anchor="mm")
        draw.text((x, y + 9), f"{share} %", fill=PAPER, font=font(16), anchor="mm")
        start = end
    draw.text((240, 450), "total: 150 hectares", fill=GREY, font=font(16), anchor="mm")
    return image, [
        [("How many hectares are planted with potatoes?",
          "The chart gives potatoes 24 % of 150 hectares, which is 36 hectares.")],
        [("Do the two cereals together take more than half of the land?",
          "Yes, just. Wheat has 38 % and barley 13 %, together 51 %, or 76.5 of the 150 hectares."),
         ("What is the smallest slice?", "Fruit, the red slice, with 8 %, which is 12 hectares.")],
    ]


def text_page():
    image, draw = sheet(600, 800, "#fdfcf8")
    text = (DATA / "essays.txt").read_text().split("\n\n")
    draw.text((60, 50), text[0], fill=INK, font=font(24))
    y = 110
    for paragraph in text[1:3]:
        for line in wrapped(draw, paragraph, 480, font(17)):
            draw.text((60, y), line, fill=INK, font=font(17))
            y += 26
        y += 14
    draw.text((300, 765), "7", fill=GREY, font=font(14), anchor="mm")
    return image, [
        [("Transcribe the first paragraph of this page.", text[1])],
        [("What is the title, and what does the page say is the reason for it?",
          f"The title is \"{text[0]}\". The reason given is division: on the ship the cost is shared among two hundred thousand parcels, "
          "while the van carries a hundred and forty that all go to different doors, so every stop costs minutes."),
         ("Which page of the document is it?", "The number at the foot of the page is 7.")],
    ]


def old_page():
    rng = random.Random(5)
    image, draw = sheet(520, 700, "#efe6d0")
    text = (DATA / "novels.txt").read_text().split("\n\n")[:12]
    y = 50
    shown = []
    for paragraph in text:
        lines = wrapped(draw, "    " + paragraph, 410, font(16))
        if y + 22 * len(lines) > 650:
            break
        shown.append(paragraph)
        for index, line in enumerate(lines):
            draw.text((76 if index == 0 else 56, y), line, fill="#3a2d20", font=font(16))
            y += 22
        y += 6
    for _ in range(40):
        x, y, size = rng.randrange(520), rng.randrange(700), rng.randrange(1, 4)
        draw.ellipse((x, y, x + size, y + size), fill="#d9c9a6")
    image = image.rotate(1.2, resample=Image.Resampling.BICUBIC, fillcolor="#8d8272").filter(ImageFilter.GaussianBlur(0.4))
    return image, [
        [("Read out what is printed on this page.", "\n\n".join(shown))],
        [("What kind of text is this, and what state is the page in?",
          "It is dialogue from a novel; the talk is of Harriet Smith's refusal of Robert Martin, and of Emma's part in it. The paper is "
          "yellowed and lightly spotted, and the page was scanned at a slight angle, so that a darker background shows at its edges.")],
    ]


def timetable():
    image, draw = sheet(700, 420)
    header = ["Train", "Ashby", "Colne", "Marden", "Whitsea", "Platform"]
    rows = [["R 11", "06:42", "06:58", "07:21", "07:50", "2"], ["IC 4", "07:10", "-", "07:38", "08:01", "1"],
            ["R 13", "07:42", "07:58", "08:21", "08:50", "2"], ["R 15", "08:42", "08:58", "09:21", "09:50", "3"],
            ["IC 6", "09:10", "-", "09:38", "10:01", "1"]]
    draw.rectangle((0, 0, 700, 64), fill="#1d3557")
    draw.text((24, 32), "Departures, Monday to Friday", fill=PAPER, font=font(24), anchor="lm")
    for row, cells in enumerate([header] + rows):
        y = 94 + row * 52
        if row and row % 2 == 0:
            draw.rectangle((12, y - 26, 688, y + 26), fill="#eef2f7")
        for column, cell in enumerate(cells):
            draw.text((60 + column * 115, y), cell, fill=GREY if row == 0 else INK, font=font(18), anchor="mm")
    draw.line((12, 120, 688, 120), fill=INK, width=2)
    table = [header, ["---"] * 6] + rows
    return image, [
        [("I am in Ashby and must be in Whitsea by nine. What is the latest train that I can take?",
          "The R 13, which leaves Ashby at 07:42 from platform 2 and reaches Whitsea at 08:50. The next one, the R 15 at 08:42, arrives "
          "only at 09:50."),
         ("Does it stop in Colne?", "Yes, at 07:58. Only the two IC trains pass Colne without stopping.")],
        [("Convert the timetable to a Markdown table.", "\n".join("| " + " | ".join(row) + " |" for row in table))],
        [("How much faster is the IC than the R trains?",
          "The IC takes 51 minutes from Ashby to Whitsea (07:10 to 08:01), the R trains 68 minutes (06:42 to 07:50). The IC is 17 "
          "minutes faster.")],
    ]


def arrow(draw, start, end):
    draw.line((*start, *end), fill=INK, width=2)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [(end[0] - 10 * math.cos(angle + side), end[1] - 10 * math.sin(angle + side)) for side in (0.45, -0.45)]
    draw.polygon([end, *wings], fill=INK)


def flow_chart():
    image, draw = sheet(580, 640)

    def box(x, y, text, colour, diamond=False):
        if diamond:
            draw.polygon([(x, y - 46), (x + 112, y), (x, y + 46), (x - 112, y)], fill=colour, outline=INK, width=2)
        else:
            draw.rounded_rectangle((x - 90, y - 28, x + 90, y + 28), 10, fill=colour, outline=INK, width=2)
        draw.text((x, y), text, fill=INK, font=font(16), anchor="mm")

    box(200, 50, "Parcel arrives", "#dfeaf7")
    arrow(draw, (200, 78), (200, 124))
    box(200, 170, "Label readable?", "#fff2cc", diamond=True)
    arrow(draw, (200, 216), (200, 264))
    box(200, 310, "Over 20 kg?", "#fff2cc", diamond=True)
    arrow(draw, (200, 356), (200, 412))
    box(200, 440, "Sort by machine", "#d9ead3")
    box(470, 170, "Enter by hand", "#f4cccc")
    box(470, 310, "Sort by hand", "#f4cccc")
    arrow(draw, (312, 170), (380, 170))
    arrow(draw, (312, 310), (380, 310))
    arrow(draw, (420, 198), (262, 284))
    arrow(draw, (200, 468), (200, 552))
    arrow(draw, (470, 338), (260, 552))
    box(200, 580, "Load van", "#dfeaf7")
    for x, y, text in [(340, 156, "no"), (222, 238, "yes"), (340, 324, "yes"), (218, 384, "no")]:
        draw.text((x, y), text, fill=COLOURS["blue"], font=font(15), anchor="mm")
    return image, [
        [("What happens to a parcel of 25 kg whose label can be read?",
          "It arrives, its label is readable, so it goes on to the question whether it weighs over 20 kg. It does, so it is sorted by hand, "
          "and then loaded into the van.")],
        [("Describe the process as a numbered list.",
          "1. The parcel arrives.\n2. Is the label readable? If not, it is entered by hand.\n3. Does it weigh over 20 kg? If so, it is sorted "
          "by hand; if not, by machine.\n4. It is loaded into the van."),
         ("How many decisions are there?", "Two, drawn as yellow diamonds: \"Label readable?\" and \"Over 20 kg?\".")],
    ]


def shapes():
    image, draw = sheet(448, 448, "#f2f2f2")
    draw.ellipse((40, 40, 160, 160), fill=COLOURS["red"])
    draw.rectangle((250, 50, 400, 150), fill=COLOURS["blue"])
    draw.polygon([(110, 240), (190, 390), (30, 390)], fill=COLOURS["green"])
    draw.regular_polygon((320, 310, 75), 6, fill=COLOURS["orange"])
    draw.ellipse((290, 280, 350, 340), fill=COLOURS["purple"])
    return image, [
        [("Which shapes are there, and where?",
          "Five: a red circle at the top left, a blue rectangle at the top right, a green triangle at the bottom left, and an orange hexagon "
          "at the bottom right with a small purple circle inside it.")],
        [("What is the colour of the shape below the red circle?", "Green. It is a triangle."),
         ("And is there any shape inside another?", "Yes, the purple circle lies in the middle of the orange hexagon.")],
        [("How many circles are there?", "Two: the large red one and the small purple one within the hexagon.")],
    ]


def noise(rng, width, height, coarseness):
    small = (max(2, width // coarseness), max(2, height // coarseness))
    grain = Image.frombytes("L", small, rng.randbytes(small[0] * small[1]))
    return grain.resize((width, height), Image.Resampling.BICUBIC)


def gradient(width, height, top, bottom):
    column = Image.new("RGB", (1, height))
    for y in range(height):
        share = y / (height - 1)
        column.putpixel((0, y), tuple(round(a + (b - a) * share) for a, b in zip(top, bottom)))
    return column.resize((width, height))


def textured(image, rng, strength):
    grain = noise(rng, *image.size, 2).convert("RGB")
    return Image.blend(image, grain, strength)


def landscape():
    rng = random.Random(9)
    image = gradient(768, 432, (105, 170, 225), (225, 235, 240))
    draw = ImageDraw.Draw(image)
    draw.ellipse((600, 40, 670, 110), fill="#ffe680")
    for left, peak, right, colour in [(-60, 230, 420, "#7d8aa0"), (220, 470, 800, "#6b7a92")]:
        draw.polygon([(left, 300), (peak, 110 if peak < 300 else 150), (right, 300)], fill=colour)
    draw.polygon([(195, 145), (230, 110), (267, 147), (246, 160), (228, 146), (210, 160)], fill="#f7f9fb")
    draw.rectangle((0, 290, 768, 432), fill="#6fa052")
    draw.polygon([(370, 290), (400, 290), (520, 432), (300, 432)], fill="#c9b48a")
    for x, y, size in [(90, 330, 46), (180, 360, 60), (610, 340, 52), (700, 370, 64)]:
        draw.rectangle((x - 5, y, x + 5, y + size * 0.6), fill="#5d4630")
        draw.polygon([(x, y - size), (x - size * 0.5, y + 6), (x + size * 0.5, y + 6)], fill="#2f6b3a")
    return textured(image, rng, 0.10).filter(ImageFilter.GaussianBlur(0.6)), [
        [("Describe this image.",
          "A simple landscape by day. Under a blue sky with a yellow sun at the upper right stand two grey-blue mountains, the left one higher "
          "and with snow on its peak. In front of them lies a green meadow, crossed by a sandy path that widens towards the viewer, with two "
          "fir trees on either side.")],
        [("How many trees can you see, and how are they placed?",
          "Four fir trees: two to the left of the path and two to the right of it."),
         ("Which of the mountains has snow on it?", "The left one, which is the higher of the two.")],
    ]


def night_sea():
    rng = random.Random(10)
    image = gradient(640, 360, (10, 15, 45), (60, 60, 110))
    draw = ImageDraw.Draw(image)
    for _ in range(70):
        x, y = rng.randrange(640), rng.randrange(190)
        draw.point((x, y), fill="#ffffff")
    draw.ellipse((90, 40, 150, 100), fill="#f4f1d8")
    draw.rectangle((0, 220, 640, 360), fill="#0d1f3c")
    for row in range(12):
        width = 18 + row * 5
        y = 226 + row * 10
        draw.line((120 - width, y, 120 + width, y), fill="#b9b68f", width=2)
    draw.polygon([(470, 150), (500, 150), (508, 260), (462, 260)], fill="#e8e4da")
    for y in (170, 210):
        draw.rectangle((464, y, 506, y + 18), fill=COLOURS["red"])
    draw.rectangle((472, 130, 498, 150), fill="#ffd95a")
    draw.polygon([(466, 130), (504, 130), (485, 112)], fill="#7c1f1f")
    draw.polygon([(400, 300), (440, 262), (540, 260), (640, 290), (640, 330), (410, 330)], fill="#2a2622")
    draw.polygon([(240, 262), (320, 262), (304, 284), (256, 284)], fill="#553322")
    draw.polygon([(282, 190), (282, 258), (244, 258)], fill="#c9c9c9")
    return textured(image, rng, 0.06), [
        [("What time of day is shown, and how can you tell?",
          "It is night: the sky is dark blue with many stars, a full moon stands at the left and is mirrored in the sea, and the lantern of the "
          "lighthouse is lit.")],
        [("Write a short caption for this picture.",
          "A red and white lighthouse on its rocks, a small sailing boat beside it, and a full moon over a calm sea."),
         ("On which side of the boat is the lighthouse, as we see it?", "On the right; the moon is on its left.")],
    ]


def city_map():
    image, draw = sheet(640, 560, "#f3efe4")
    draw.line([(0, 420), (130, 380), (280, 400), (430, 330), (640, 300)], fill="#9cc3e6", width=36)
    draw.rectangle((60, 60, 220, 190), fill="#b9dba6")
    draw.text((140, 125), "City Park", fill="#2f5d2f", font=font(17), anchor="mm")
    for road in [[(300, 0), (300, 560)], [(0, 240), (640, 240)], [(480, 0), (480, 560)], [(0, 500), (640, 480)]]:
        draw.line(road, fill=GREY, width=13)
        draw.line(road, fill=PAPER, width=9)
    places = [("Station", 540, 120, "red"), ("Museum", 390, 180, "purple"), ("Harbour", 120, 440, "blue"), ("School", 390, 440, "orange"),
              ("Hospital", 560, 420, "teal")]
    for name, x, y, colour in places:
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=COLOURS[colour], outline=INK)
        draw.text((x, y + 20), name, fill=INK, font=font(16), anchor="mm")
    draw.text((60, 358), "River Tarn", fill="#2f5f8f", font=font(15), anchor="mm")
    draw.line((600, 70, 600, 30), fill=INK, width=3)
    draw.polygon([(600, 16), (592, 34), (608, 34)], fill=INK)
    draw.text((600, 82), "N", fill=INK, font=font(16), anchor="mm")
    draw.line((30, 535, 130, 535), fill=INK, width=3)
    draw.text((80, 547), "500 m", fill=INK, font=font(13), anchor="mm")
    return image, [
        [("Which places lie north of the river?",
          "The station and the museum are north of the River Tarn, and so is the City Park. The harbour, the school and the hospital are south of it.")],
        [("About how far is it from the museum to the station as the crow flies?",
          "About 800 metres: the two are some 1.6 lengths of the scale bar apart, which stands for 500 metres."),
         ("In which direction would I go?", "East, and a little to the north; north is at the top of this map.")],
        [("What is the green area?", "It is the City Park, in the north-west of the map.")],
    ]


def receipt():
    image, draw = sheet(320, 640, "#fafafa")
    items = [("Bread, rye", 1, 345), ("Milk 1 l", 2, 129), ("Apples 1.5 kg", 1, 412), ("Coffee 500 g", 1, 799), ("Soap", 3, 95)]
    total = sum(count * price for _, count, price in items)
    money = lambda cents: f"{cents // 100}.{cents % 100:02}"
    draw.text((160, 36), "CORNER SHOP", fill=INK, font=font(24), anchor="mm")
    draw.text((160, 62), "14 Mill Lane, Colne", fill=INK, font=font(14), anchor="mm")
    draw.text((160, 84), "2024-03-09   17:42", fill=INK, font=font(14), anchor="mm")
    y = 120
    for name, count, price in items:
        draw.text((24, y), name, fill=INK, font=font(16))
        draw.text((296, y), money(count * price), fill=INK, font=font(16), anchor="ra")
        if count > 1:
            y += 22
            draw.text((44, y), f"{count} x {money(price)}", fill=GREY, font=font(14))
        y += 30
    draw.line((24, y + 4, 296, y + 4), fill=INK)
    for label, value in [("TOTAL", total), ("CASH", 2500), ("CHANGE", 2500 - total)]:
        y += 30
        draw.text((24, y - 14), label, fill=INK, font=font(18))
        draw.text((296, y - 14), money(value), fill=INK, font=font(18), anchor="ra")
    rng = random.Random(12)
    x = 60
    while x < 255:
        width = rng.randrange(1, 5)
        draw.rectangle((x, 540, x + width, 590), fill=INK)
        x += width + rng.randrange(2, 6)
    draw.text((160, 612), "Thank you!", fill=INK, font=font(15), anchor="mm")
    lines = [{"item": name, "count": count, "amount": money(count * price)} for name, count, price in items]
    return image, [
        [("Extract the items of this receipt as JSON.", json.dumps({"items": lines, "total": money(total)}, indent=2))],
        [("How much was paid, and how much was given back?",
          f"The total is {money(total)}. It was paid with 25.00 in cash, so {money(2500 - total)} was given back."),
         ("What was the dearest item?", "The 500 g of coffee for 7.99."),
         ("When was this?", "On 9 March 2024 at 17:42.")],
    ]


def filled_form():
    rng = random.Random(13)
    image, draw = sheet(600, 700)
    draw.text((40, 40), "Membership application", fill=INK, font=font(26))
    draw.text((40, 78), "Please write in block letters", fill=GREY, font=font(15))
    entries = [("Name", "MARA LINDQVIST"), ("Street", "8 HARBOUR ROW"), ("Town", "WHITSEA"), ("Born", "17 MAY 1986"), ("E-mail", "")]
    for index, (label, entry) in enumerate(entries):
        y = 120 + index * 66
        draw.text((40, y), label, fill=INK, font=font(16))
        draw.rectangle((150, y - 8, 560, y + 32), outline=GREY)
        x = 162
        for letter in entry:
            draw.text((x, y - 1 + rng.randrange(-2, 3)), letter, fill="#1f3fa0", font=font(22))
            x += 17
    y = 470
    draw.text((40, y), "Kind of membership", fill=INK, font=font(16))
    for index, (label, ticked) in enumerate([("adult", True), ("family", False), ("student", False)]):
        x = 60 + index * 170
        draw.rectangle((x, y + 36, x + 22, y + 58), outline=INK, width=2)
        draw.text((x + 34, y + 36), label, fill=INK, font=font(18))
        if ticked:
            draw.line([(x + 3, y + 46), (x + 10, y + 56), (x + 28, y + 28)], fill="#1f3fa0", width=4)
    draw.line((300, 640, 560, 640), fill=INK)
    draw.text((430, 656), "signature", fill=GREY, font=font(14), anchor="mm")
    wave = [(310 + step * 2, 620 + 14 * math.sin(step * 0.55) * math.cos(step * 0.13)) for step in range(100)]
    draw.line(wave, fill="#1f3fa0", width=3)
    return image, [
        [("Read this form and give its fields.",
          "Name: Mara Lindqvist\nStreet: 8 Harbour Row\nTown: Whitsea\nBorn: 17 May 1986\nE-mail: (empty)\nKind of membership: adult\nSigned: yes")],
        [("Is the form complete?",
          "Not quite: the field for the e-mail address is empty. All other fields are filled in, the box for adult membership is ticked, and there "
          "is a signature.")],
    ]


def handwriting():
    rng = random.Random(14)
    image, draw = sheet(640, 300, "#fffdf0")
    for y in range(60, 300, 48):
        draw.line((0, y + 8, 640, y + 8), fill="#c9d8ee")
    draw.line((60, 0, 60, 300), fill="#e7a5a5", width=2)
    note = ["Dear Tom,", "the key is under the blue pot.", "Please water the tomatoes twice", "and feed the cat.  Love, Ida"]
    for row, line in enumerate(note):
        x = 76
        for letter in line:
            face = font(27 + rng.randrange(-1, 2))
            width = draw.textlength(letter, font=face)
            glyph = Image.new("L", (48, 56))
            ImageDraw.Draw(glyph).text((8, 8), letter, fill=255, font=face)
            glyph = glyph.transform(glyph.size, Image.Transform.AFFINE, (1, 0.25, -6, 0, 1, 0), Image.Resampling.BICUBIC)
            glyph = glyph.rotate(rng.uniform(-5, 5), Image.Resampling.BICUBIC)
            image.paste("#23306e", (round(x) - 8, 26 + row * 48 + rng.randrange(-2, 3)), glyph)
            x += width * 1.04
    return image, [
        [("What does the note say?", "Dear Tom,\nthe key is under the blue pot. Please water the tomatoes twice and feed the cat.\nLove, Ida")],
        [("Where is the key?", "Under the blue pot."),
         ("And what is Tom asked to do?", "Two things: to water the tomatoes twice, and to feed the cat.")],
    ]


def clock():
    image, draw = sheet(360, 360, "#e9eef2")
    draw.ellipse((20, 20, 340, 340), fill=PAPER, outline=INK, width=6)
    point = lambda turn, length: (180 + length * math.sin(turn * math.tau), 180 - length * math.cos(turn * math.tau))
    for minute in range(60):
        inner = 138 if minute % 5 == 0 else 146
        draw.line((*point(minute / 60, inner), *point(minute / 60, 152)), fill=INK, width=3 if minute % 5 == 0 else 1)
    for hour in range(1, 13):
        draw.text(point(hour / 12, 120), str(hour), fill=INK, font=font(26), anchor="mm")
    draw.line((180, 180, *point((10 + 10 / 60) / 12, 78)), fill=INK, width=9)
    draw.line((180, 180, *point(10 / 60, 112)), fill=INK, width=6)
    draw.line((180, 180, *point(35 / 60, 125)), fill=COLOURS["red"], width=2)
    draw.ellipse((172, 172, 188, 188), fill=COLOURS["red"])
    return image, [
        [("What time is it?", "Ten past ten. The short hand is just past the 10 and the long one points at the 2; the red second hand is at the 7.")],
        [("How long is it until eleven o'clock?", "The clock shows ten past ten, so it is 50 minutes, less the 35 seconds that the red hand has run.")],
    ]


def chess():
    image, draw = sheet(520, 520, "#3b2a1e")
    square = lambda name: (20 + (ord(name[0]) - 97) * 60, 20 + (8 - int(name[1])) * 60)
    for column in range(8):
        for row in range(8):
            x, y = 20 + column * 60, 20 + row * 60
            draw.rectangle((x, y, x + 59, y + 59), fill="#eeddbb" if (column + row) % 2 == 0 else "#a9774b")
    for index in range(8):
        draw.text((50 + index * 60, 510), "abcdefgh"[index], fill=PAPER, font=font(14), anchor="mm")
        draw.text((10, 50 + index * 60), str(8 - index), fill=PAPER, font=font(14), anchor="mm")
    white = {"g1": "K", "f1": "R", "d4": "P", "f2": "P", "g2": "P", "h2": "P"}
    black = {"g8": "K", "d8": "Q", "d5": "P", "f7": "P", "g7": "P", "h7": "P"}
    for pieces, fill, ink in [(white, "#ffffff", "#111111"), (black, "#111111", "#ffffff")]:
        for name, letter in pieces.items():
            x, y = square(name)
            draw.ellipse((x + 9, y + 9, x + 51, y + 51), fill=fill, outline=ink, width=2)
            draw.text((x + 30, y + 30), letter, fill=ink, font=font(26), anchor="mm")
    spelled = {"K": "king", "Q": "queen", "R": "rook", "P": "pawn"}
    where = lambda pieces: listed([f"{spelled[letter]} {name}" for name, letter in pieces.items()])
    return image, [
        [("Give the position of all pieces.", f"White: {where(white)}.\nBlack: {where(black)}.")],
        [("Which side has the stronger pieces?",
          "Black. Both have a king and four pawns, but Black has a queen on d8 where White has only a rook on f1."),
         ("Which pawns face each other directly?", "The white pawn on d4 and the black pawn on d5: they block each other.")],
    ]


def floor_plan():
    image, draw = sheet(640, 480)
    rooms = [("Kitchen", 40, 40, 260, 220, "4.4 x 3.6 m"), ("Living room", 260, 40, 600, 220, "6.8 x 3.6 m"), ("Bathroom", 40, 220, 180, 440, "2.8 x 4.4 m"),
             ("Hall", 180, 220, 360, 440, "3.6 x 4.4 m"), ("Bedroom", 360, 220, 600, 440, "4.8 x 4.4 m")]
    for name, left, top, right, bottom, size in rooms:
        draw.rectangle((left, top, right, bottom), outline=INK, width=5, fill="#f6f3ea" if name != "Bathroom" else "#dcecf2")
        draw.text(((left + right) / 2, (top + bottom) / 2 - 10), name, fill=INK, font=font(18), anchor="mm")
        draw.text(((left + right) / 2, (top + bottom) / 2 + 12), size, fill=GREY, font=font(14), anchor="mm")
    for door in [(210, 218, 250, 222), (280, 218, 330, 222), (178, 320, 182, 360), (358, 320, 362, 360), (250, 438, 300, 442)]:
        draw.rectangle(door, fill="#e0a050")
    areas = {name: float(size.split()[0]) * float(size.split()[2]) for name, *_, size in rooms}
    largest = max(areas, key=areas.get)
    return image, [
        [("Which is the largest room, and how large is it?",
          f"The {largest.lower()}: {areas[largest]:.1f} square metres (6.8 by 3.6 m). The bedroom is next with {areas['Bedroom']:.1f}."),
         ("What is the area of the whole flat?", f"The five rooms together have {sum(areas.values()):.1f} square metres.")],
        [("Through which rooms do you get from the front door to the kitchen?",
          "The front door, at the bottom of the plan, opens into the hall, and the hall has a door to the kitchen at its upper left. So only through "
          "the hall. All doors are marked in orange.")],
    ]


def poster():
    image = gradient(400, 560, (245, 196, 92), (214, 84, 60))
    draw = ImageDraw.Draw(image)
    for ray in range(16):
        a, b = ray / 16 * math.tau, (ray + 0.5) / 16 * math.tau
        draw.polygon([(200, 300)] + [(200 + 150 * math.cos(t), 300 + 150 * math.sin(t)) for t in (a, b)], fill="#ffe6a0")
    draw.ellipse((140, 240, 260, 360), fill="#fff6d8")
    for text, y, size in [("SUMMER", 60, 62), ("CONCERT", 122, 56), ("The Gravel Street Band", 300, 0), ("Saturday 12 July, 8 pm", 468, 26),
                          ("Old Brewery Yard", 502, 24), ("free entry", 532, 18)]:
        if size:
            draw.text((200, y), text, fill="#4a1420", font=font(size), anchor="mm")
    for row, word in enumerate(["The", "Gravel", "Street", "Band"]):
        draw.text((200, 264 + row * 24), word, fill="#4a1420", font=font(20), anchor="mm")
    return image, [
        [("What is announced here, when and where?",
          "A summer concert of the Gravel Street Band, on Saturday 12 July at 8 pm, in the Old Brewery Yard."),
         ("What does it cost?", "Nothing: the last line says \"free entry\".")],
        [("Describe the design of this poster.",
          "The background runs from yellow at the top to red at the bottom. In the middle a pale sun with pointed rays holds the band's name. Above it "
          "stands \"SUMMER CONCERT\" in large dark red capitals, below it the date, the place and the entry in smaller letters.")],
    ]


def scatter():
    rng = random.Random(19)
    image, draw = sheet(560, 420)
    draw.text((280, 22), "Age and height of 40 birches", fill=INK, font=font(20), anchor="mm")
    height = axes(draw, (60, 60, 530, 360), 25, 5, "m")
    for index in range(39):
        age = 4 + index * 1.1
        tall = 21 * (1 - math.exp(-age / 18)) + rng.uniform(-1.3, 1.3)
        x = 60 + age / 50 * 470
        draw.ellipse((x - 4, height(tall) - 4, x + 4, height(tall) + 4), fill=COLOURS["green"])
    x = 60 + 35 / 50 * 470
    draw.ellipse((x - 6, height(6) - 6, x + 6, height(6) + 6), fill=COLOURS["red"])
    for age in range(0, 51, 10):
        draw.text((60 + age / 50 * 470, 378), str(age), fill=INK, font=font(13), anchor="mm")
    draw.text((295, 402), "age in years", fill=INK, font=font(14), anchor="mm")
    return image, [
        [("What relation does the plot show?",
          "Older birches are taller, but the growth slows down: the points rise steeply over the first twenty years and flatten towards about 20 metres "
          "at an age of 40 and more."),
         ("Is there an outlier?", "Yes, one point is drawn in red: a tree of 35 years that is only 6 metres tall, where others of its age reach about 18.")],
        [("Which quantities are on the axes?", "The horizontal axis is the age in years, from 0 to 50. The vertical axis is the height in metres, from 0 to 25.")],
    ]


def dialog():
    image, draw = sheet(720, 460, "#5b7f95")
    draw.rounded_rectangle((90, 60, 630, 400), 10, fill="#f5f5f5", outline="#333333")
    draw.rectangle((91, 70, 629, 104), fill="#d9dde2")
    draw.text((110, 87), "Export", fill=INK, font=font(17), anchor="lm")
    draw.text((608, 87), "x", fill=INK, font=font(20), anchor="mm")
    for row, (label, value) in enumerate([("File name", "report-2023.pdf"), ("Pages", "3 - 18"), ("Quality", "High")]):
        y = 146 + row * 52
        draw.text((120, y), label, fill=INK, font=font(17), anchor="lm")
        draw.rectangle((250, y - 17, 590, y + 17), fill=PAPER, outline=GREY)
        draw.text((262, y), value, fill=INK, font=font(17), anchor="lm")
    for row, (label, ticked) in enumerate([("Embed fonts", True), ("Add page numbers", False)]):
        y = 292 + row * 30
        draw.rectangle((250, y - 9, 268, y + 9), fill=COLOURS["blue"] if ticked else PAPER, outline=GREY)
        if ticked:
            draw.line([(253, y), (258, y + 5), (265, y - 5)], fill=PAPER, width=3)
        draw.text((280, y), label, fill=INK, font=font(16), anchor="lm")
    for label, left, fill, ink in [("Cancel", 380, "#dddddd", INK), ("Export", 490, COLOURS["blue"], PAPER)]:
        draw.rounded_rectangle((left, 350, left + 100, 384), 6, fill=fill)
        draw.text((left + 50, 367), label, fill=ink, font=font(16), anchor="mm")
    return image, [
        [("What will happen if I press the blue button?",
          "Pages 3 to 18 are exported as report-2023.pdf in high quality, with fonts embedded and without page numbers.")],
        [("I want page numbers in the file. What must I click?",
          "The box beside \"Add page numbers\", which is not ticked, and then the blue button \"Export\" at the lower right."),
         ("How many pages will the file have?", "Sixteen: the field \"Pages\" says 3 - 18, both included.")],
    ]


def blackboard():
    rng = random.Random(21)
    image = textured(Image.new("RGB", (640, 400), "#23402f"), rng, 0.05)
    draw = ImageDraw.Draw(image)
    draw.polygon([(60, 320), (260, 320), (260, 170)], outline="#f2f2e6", width=4)
    draw.rectangle((244, 304, 260, 320), outline="#f2f2e6", width=2)
    for text, x, y in [("8", 160, 342), ("6", 282, 245), ("c", 146, 232)]:
        draw.text((x, y), text, fill="#ffe9a8", font=font(26), anchor="mm")
    for row, line in enumerate(["c x c = 8 x 8 + 6 x 6", "      = 64 + 36", "      = 100", "c = ?"]):
        draw.text((330, 130 + row * 50), line, fill="#f2f2e6", font=font(28))
    draw.text((320, 50), "The theorem of Pythagoras", fill="#a8d8ff", font=font(30), anchor="mm")
    return image, [
        [("Solve the exercise on the blackboard.",
          "The right triangle has legs of 8 and 6. By the theorem of Pythagoras c x c = 64 + 36 = 100, so c = 10. Only the positive root makes sense "
          "for a length.")],
        [("Which side of the triangle is c?", "The hypotenuse, the long slanted side opposite the right angle, which is marked at the lower right."),
         ("And what is the area of the triangle?", "Half of 8 times 6, which is 24.")],
    ]


def dashboard():
    image, draw = sheet(640, 280, "#1c1f26")
    gauges = [("Speed", 87, 160, "km/h"), ("Fuel", 30, 100, "%"), ("Engine", 92, 130, "deg C")]
    for index, (name, value, highest, unit) in enumerate(gauges):
        x = 115 + index * 205
        draw.arc((x - 85, 45, x + 85, 215), 150, 390, fill="#4a5160", width=14)
        draw.arc((x - 85, 45, x + 85, 215), 150, 150 + 240 * value / highest, fill=COLOURS["orange" if name == "Fuel" else "teal"], width=14)
        draw.text((x, 122), str(value), fill=PAPER, font=font(40), anchor="mm")
        draw.text((x, 156), unit, fill="#aab2c0", font=font(16), anchor="mm")
        draw.text((x, 240), name, fill=PAPER, font=font(20), anchor="mm")
    return image, [
        [("What do the three gauges show?", "The speed is 87 km/h, the fuel stands at 30 %, and the engine is at 92 deg C.")],
        [("The tank holds 50 litres and the car takes 6 litres for 100 km. How far can I drive?",
          "The fuel gauge shows 30 %, so there are 15 litres left. At 6 litres for 100 km that is enough for 250 km.")],
    ]


def calendar():
    image, draw = sheet(560, 440)
    draw.rectangle((0, 0, 560, 64), fill=COLOURS["red"])
    draw.text((280, 32), "September 2025", fill=PAPER, font=font(28), anchor="mm")
    marks = {4: "Dentist", 13: "Wedding", 22: "Berlin", 23: "Berlin", 24: "Berlin"}
    for column, day in enumerate(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]):
        draw.text((40 + column * 80, 84), day, fill=GREY, font=font(16), anchor="mm")
    for day in range(1, 31):
        x, y = (day - 1) % 7 * 80, 104 + (day - 1) // 7 * 66
        draw.rectangle((x + 2, y + 2, x + 78, y + 64), outline="#cccccc", fill="#fff1c9" if day in marks else PAPER)
        draw.text((x + 12, y + 8), str(day), fill=INK, font=font(16))
        draw.text((x + 40, y + 46), marks.get(day, ""), fill=COLOURS["blue"], font=font(15), anchor="mm")
    return image, [
        [("What is entered in this calendar?", "Three things: the dentist on Thursday the 4th, a wedding on Saturday the 13th, and Berlin from Monday the 22nd to "
          "Wednesday the 24th of September 2025.")],
        [("On which day of the week does the month end?", "On a Tuesday, the 30th."),
         ("How many days lie between the wedding and the journey to Berlin?", "Eight: from the 14th to the 21st.")],
        [("Is the first weekend free?", "Yes. Nothing is entered on Saturday the 6th and Sunday the 7th.")],
    ]


def bookshelf():
    rng = random.Random(24)
    image = textured(Image.new("RGB", (640, 360), "#8a6a48"), rng, 0.12)
    draw = ImageDraw.Draw(image)
    counts, reds = {}, [0, 0]
    for shelf in range(2):
        bottom = 160 + shelf * 170
        draw.rectangle((20, bottom - 140, 620, bottom), fill="#3e2c1c")
        x = 34
        for book in range(9):
            width, tall = rng.randrange(30, 58), rng.randrange(90, 130)
            colour = rng.choice(["red", "blue", "green", "orange"])
            counts[colour] = counts.get(colour, 0) + 1
            reds[shelf] += colour == "red"
            draw.rectangle((x, bottom - tall, x + width, bottom), fill=COLOURS[colour], outline="#222222", width=2)
            draw.line((x + 6, bottom - tall + 18, x + width - 6, bottom - tall + 18), fill="#f4e7c4", width=3)
            x += width + 4
        draw.rectangle((20, bottom, 620, bottom + 12), fill="#b48a5e")
    inventory = listed([f"{count} {colour}" for colour, count in sorted(counts.items())])
    return image, [
        [("How many books are on the shelves?", "Eighteen, nine on each of the two shelves.")],
        [("Count the books by the colour of their spines.", f"There are {inventory} ones, {sum(counts.values())} in all."),
         ("Do the spines have anything on them?", "Each has a thin pale line near its top, but no title.")],
        [("On which shelf are more red books?",
          f"On the {'upper' if reds[0] > reds[1] else 'lower'} one: there are {reds[0]} on the upper shelf and {reds[1]} on the lower.")],
    ]


PICTURES = [bar_chart, line_chart, pie_chart, text_page, old_page, timetable, flow_chart, shapes, landscape, night_sea, city_map, receipt,
            filled_form, handwriting, clock, chess, floor_plan, poster, scatter, dialog, blackboard, dashboard, calendar, bookshelf]
# Shown in no other conversation than their own, which come last.
HELD_OUT = [calendar, bookshelf]
TOGETHER = [
    ([landscape, night_sea],
     [("What do these two pictures have in common, and how do they differ?",
       "Both are simple drawings of nature under a wide sky. The first shows mountains, a meadow and fir trees by day under the sun, the second the "
       "sea, a lighthouse and a boat at night under the moon.")]),
    ([bar_chart, pie_chart],
     [("What kind of chart is each of these?",
       "The first is a bar chart of the rainfall in Port Arden in 2021, month by month. The second is a pie chart of the land use on Hollin Farm."),
      ("Which of them shows shares of a whole?", "The second: its five slices add up to 100 % of 150 hectares. The bars of the first are amounts in millimetres.")]),
    ([clock, timetable],
     [("The clock shows the time now, in the morning in Ashby. Which trains of this timetable have I missed?",
       "All of them. It is ten past ten, and the last train listed, the IC 6, left Ashby at 09:10.")]),
    ([shapes, chess],
     [("Which of the two images has more circles?",
       "The second. The first has two circles, the red one and the purple one; on the chess board each of the twelve pieces is drawn as a disc.")]),
]


def encoded(image):
    """The smaller of PNG and JPEG: its extension and bytes."""
    files = []
    for extension, options in [("png", {"optimize": True}), ("jpg", {"quality": 85, "optimize": True})]:
        file = io.BytesIO()
        image.save(file, "JPEG" if extension == "jpg" else "PNG", **options)
        files.append((extension, file.getvalue()))
    return min(files, key=lambda file: len(file[1]))


def conversation(paths, turns):
    messages = []
    for index, (question, answer) in enumerate(turns):
        content = [{"type": "text", "text": question}]
        if index == 0:
            content = [{"type": "image", "image": path} for path in paths] + content
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer})
    return json.dumps({"messages": messages}, ensure_ascii=False)


def main():
    folder = DATA / "images"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    paths, first, last = {}, [], []
    for picture in PICTURES:
        image, conversations = picture()
        extension, data = encoded(image)
        name = f"{picture.__name__}.{extension}"
        (folder / name).write_bytes(data)
        paths[picture] = f"images/{name}"
        lines = last if picture in HELD_OUT else first
        lines += [conversation([paths[picture]], turns) for turns in conversations]
    first += [conversation([paths[picture] for picture in pictures], turns) for pictures, turns in TOGETHER]
    (DATA / "images.jsonl").write_text("\n".join(first + last) + "\n")


if __name__ == "__main__":
    main()
